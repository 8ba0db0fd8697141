"""Forty records of the bundled task and a tokenizer that spells them."""

import pytest

from mindspore_impl.data import list_programs
from mindspore_impl.text import chat
from mindspore_impl.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def records():
    return list(list_programs.generate("train", 0, 40, "reasoning", 0.0, 3, 5, 0))


@pytest.fixture(scope="module")
def tokenizer(records, tmp_path_factory):
    texts = [text for record in records for text in chat.segments(record)]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", 130)
