"""Answer verification: the registry of verifiers, and the rules that hold for every task.

A record names its verifier in `meta["task"]`. Built in are `exact`, `gsm8k` and `list_programs`; a module outside this
package adds its own with `register_verifier`.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from mindspore_impl.data.list_programs import OPERATIONS, execute
from mindspore_impl.errors import UserError
from mindspore_impl.text.chat import Completion
from mindspore_impl.text.records import Record


@dataclass(frozen=True)
class Verifier:
    """How the answers to one kind of task are checked."""

    expected: Callable[[Record], str]  # the right answer; raises UserError naming the record when it holds none
    matches: Callable[[Record, str], bool]  # whether an answer is right


VERIFIERS: dict[str, Verifier] = {}


def register_verifier(
    name: str, expected: Callable[[Record], str], matches: Callable[[Record, str], bool] | None = None
) -> None:
    """Register the verifier that records select with `meta["task"] = name`.

    expected: record -> the right answer; raises UserError naming a record that holds none. matches: (record, answer) ->
    whether it is right; None: equality with `expected(record)`, white space aside. Raises UserError when another module
    has registered the name; importing the same module again is not a conflict.
    """
    verifier = Verifier(expected, matches or (lambda record, answer: normalize(answer) == normalize(expected(record))))
    known = VERIFIERS.get(name)
    if known and known.expected.__module__ != expected.__module__:
        raise UserError(f"verifier {name!r} is already registered by {known.expected.__module__}; choose another name")
    VERIFIERS[name] = verifier


def checkable(record: Record) -> bool:
    """Whether the record names a task, so that an answer to it can be verified."""
    return "task" in record.meta


def expected(record: Record) -> str:
    """The right answer as text. Raises UserError naming the record when it has no known task or no answer."""
    return _verifier(record).expected(record)


def correct(record: Record, completion: Completion) -> bool:
    """Whether `completion` is a right answer in the thinking mode of `record`. Raises UserError like `expected`.

    A truncated completion is wrong. In fast mode so is one with reasoning (an empty thinking span is optional); in
    reasoning mode one without a well-formed thinking span.
    """
    verifier = _verifier(record)
    formed = completion.well_formed if record.thinking == "reasoning" else not completion.reasoning.strip()
    if not completion.finished or not formed:
        return False
    return verifier.matches(record, completion.answer)


def label_correct(record: Record) -> bool:
    """Whether the content of the record's last message, the training label, is a right answer.

    Raises UserError like `expected`, and when the record does not end with an assistant message.
    """
    last = record.messages[-1]
    if last.role != "assistant":
        raise UserError(f"record {record.id!r}: it ends with a {last.role} message, so it has no answer to verify")
    return _verifier(record).matches(record, last.content)


def _verifier(record: Record) -> Verifier:
    name = record.meta.get("task")
    if not isinstance(name, str) or name not in VERIFIERS:
        raise UserError(f"record {record.id!r}: meta.task is {name!r}; set it to one of {', '.join(VERIFIERS)}")
    return VERIFIERS[name]


def normalize(text: str) -> str:
    """`text` in Unicode NFC with the decimals of every script as 0 to 9 and single spaces."""
    return " ".join(unicodedata.normalize("NFC", _decimals(text)).split())


def _decimals(text: str) -> str:
    return re.sub(r"\d", lambda found: str(int(found[0])), text)  # superscripts and circled digits are no decimals


def half_width(text: str) -> str:
    """`text`, equally long, with decimals of every script and full-width characters in ASCII: －１，０００．５％."""
    return text if text.isascii() else _decimals(text).translate(_HALF_WIDTH)


def ungrouped(text: str) -> str:
    """`half_width` of a number without the commas between its thousands."""
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", half_width(text))


def _answer(record: Record) -> str:
    """exact: the text in `meta["answer"]`."""
    answer = record.meta.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(f"record {record.id!r}: meta.answer is missing or empty; accuracy needs the right answer")
    return answer


_HALF_WIDTH = {code + 0xFEE0: code for code in range(0x21, 0x7F)}
_HALF_WIDTH |= str.maketrans({"\u3000": " ", "￥": "¥", "￡": "£", "−": "-", "﹣": "-", "٫": ".", "٬": ","})
# Of words that can hold a digit (H2O): Latin, Greek, Cyrillic. Beside another letter a digit is a number (共18个).
LETTERS = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u058f\u1e00-\u1fff"
# A number is not part of a word or an exponent (m2, x^2). A minus counts only where it is a sign (not in 5-3, 5元-3元).
_NUMBER = re.compile(
    rf"(?<![0-9_^{LETTERS}])(?<![0-9]\.)(?P<sign>(?<!\))(?<![0-9]\w)(?<![0-9]\w\w)-)?[$€£¥]?\s?"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<!\.)\.[0-9]+)"
    r"(?:\s?/\s?(?P<below>[1-9][0-9]*)(?!\.?[0-9]))?"
)


def final_number(text: str) -> Fraction | None:
    """The last number in `text` (after `####` where present), exactly; None when there is none.

    The one rule for labels, rollouts and benchmarks. A superscript is an exponent: 10² holds 10, as 10^2 does.
    """
    found = list(_NUMBER.finditer(half_width(text).rsplit("####", 1)[-1]))
    if not found:
        return None
    sign, digits, below = found[-1].groups()
    return Fraction((sign or "") + digits.replace(",", "")) / int(below or 1)


def _number(record: Record) -> str:
    """gsm8k: the number in `meta["answer"]`, as text."""
    answer = _answer(record)
    if final_number(answer) is None:
        raise UserError(f"record {record.id!r}: meta.answer {answer!r} holds no number, which gsm8k compares")
    return answer


def _program_result(record: Record) -> str:
    """list_programs: the result of executing the program in `meta`, never a stored label."""
    values = {key: record.meta.get(key) for key in ("letters", "operations")}
    for key, value in values.items():
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise UserError(f"record {record.id!r}: meta.{key} is {value!r}; list_programs needs an array of strings")
    if unknown := [name for name in values["operations"] if name not in OPERATIONS]:
        raise UserError(f"record {record.id!r}: meta.operations has {unknown[0]!r}; known: {', '.join(OPERATIONS)}")
    return " ".join(execute(values["letters"], values["operations"]))


register_verifier("list_programs", _program_result, lambda record, answer: answer.strip() == _program_result(record))
register_verifier("gsm8k", _number, lambda record, answer: final_number(_number(record)) == final_number(answer))
register_verifier("exact", _answer)
