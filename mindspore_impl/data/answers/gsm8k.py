"""Grade-school mathematics: the last number of the answer must equal the expected one."""

import re
from fractions import Fraction

from mindspore_impl.data.answers import exact
from mindspore_impl.errors import UserError
from mindspore_impl.text.records import Record

# A number is not part of a word or an exponent (m2, x^2), and a minus counts only where it is a sign (not in 5-3).
_NUMBER = re.compile(
    r"(?<![\w^])(?<![0-9]\.)(?P<sign>(?<!\))-)?\$?\s?"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<!\.)\.[0-9]+)"
    r"(?:\s?/\s?(?P<below>[1-9][0-9]*)(?![0-9.]))?"
)


def expected(record: Record) -> str:
    """The number in `meta["answer"]`, as text. Raises UserError that names the record when it holds none."""
    answer = exact.expected(record)
    if final_number(answer) is None:
        raise UserError(f"record {record.id!r}: meta.answer {answer!r} holds no number, which gsm8k compares")
    return answer


def matches(record: Record, answer: str) -> bool:
    """Whether the final number of `answer` equals the expected one: 1,234 and $1234.00. and 1234 are equal."""
    found = final_number(answer)
    return found is not None and found == final_number(expected(record))


def final_number(text: str) -> Fraction | None:
    """The last number in `text` (after `####` where the text has it), exactly; None when there is none."""
    text = text.rsplit("####", 1)[-1].replace("\N{MINUS SIGN}", "-")
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    last = found[-1]
    value = Fraction(last["digits"].replace(",", ""))
    if last["below"]:
        value /= int(last["below"])
    return -value if last["sign"] else value
