"""Small records and the tokenizer trained on them, for tests that need both."""

from mindspore_impl.data import list_programs
from mindspore_impl.data.options import ListProgramsSet
from mindspore_impl.text import chat
from mindspore_impl.text.tokenizer import Tokenizer, train_tokenizer


def labelled(count: int, thinking: str) -> list:
    """Bundled problems with clean labels."""
    return list(list_programs.generate(ListProgramsSet(count=count, thinking=thinking)))


def trained_on(records, folder, vocab_size: int) -> Tokenizer:
    """A tokenizer in `folder` that can spell `records`."""
    texts = [text for record in records for text in chat.segments(record)]
    return train_tokenizer(texts, folder / "tokenizer.model", vocab_size)
