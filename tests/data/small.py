"""Small records and the tokenizer trained on them, for tests that need both."""

from mindspore_impl.data import list_programs
from mindspore_impl.text import chat
from mindspore_impl.text.tokenizer import Tokenizer, train_tokenizer


def labelled(count: int, thinking: str) -> list:
    """Bundled problems with clean labels."""
    return list(list_programs.generate("train", 0, count, thinking, 0.0, 3, 5, 0))


def trained_on(records, folder, vocab_size: int) -> Tokenizer:
    """A tokenizer in `folder` that can spell `records`."""
    texts = [text for record in records for text in chat.segments(record)]
    return train_tokenizer(texts, folder / "tokenizer.model", vocab_size)
