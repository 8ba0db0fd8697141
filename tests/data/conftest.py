"""Forty records of the bundled task and a tokenizer that spells them, shared by the whole room."""

import pytest

from tests.data.small import labelled, trained_on


@pytest.fixture(scope="session")
def records():
    return labelled(40, "reasoning")


@pytest.fixture(scope="session")
def tokenizer(records, tmp_path_factory):
    return trained_on(records, tmp_path_factory.mktemp("tokenizer"), 130)
