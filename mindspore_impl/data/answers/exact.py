"""Answers that must equal the expected text, whitespace and Unicode composition aside."""

import unicodedata

from mindspore_impl.errors import UserError
from mindspore_impl.text.records import Record


def expected(record: Record) -> str:
    """The text in `meta["answer"]`. Raises UserError that names the record when it is absent."""
    answer = record.meta.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(f"record {record.id!r}: meta.answer is missing or empty; accuracy needs the right answer")
    return answer


def matches(record: Record, answer: str) -> bool:
    """Whether `answer` is the expected text, letter case included."""
    return _normal(answer) == _normal(expected(record))


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
