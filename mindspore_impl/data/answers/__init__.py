"""The registry of tasks: the one place that decides whether an answer to a record is right.

A record names its task in `meta["task"]`. What holds for every task is decided here, once; a file of this folder
compares answers and offers `expected(record) -> str` and `matches(record, answer) -> bool`.
"""

from types import ModuleType

from mindspore_impl.data.answers import exact, gsm8k, list_programs
from mindspore_impl.errors import UserError
from mindspore_impl.text.chat import Completion
from mindspore_impl.text.records import Record

TASKS: dict[str, ModuleType] = {"list_programs": list_programs, "gsm8k": gsm8k, "exact": exact}


def checkable(record: Record) -> bool:
    """Whether the record names a task, so that an answer to it can be right or wrong."""
    return "task" in record.meta


def expected(record: Record) -> str:
    """The right answer in words. Raises UserError that names the record when it has no known task or no answer."""
    return _task(record).expected(record)


def correct(record: Record, completion: Completion) -> bool:
    """Whether `completion` answers `record` in the way that was asked for. Raises UserError like `expected`.

    Strict: a cut completion is wrong whatever it says; in fast mode so is one that thinks (a bare answer, without the
    empty thinking span, is allowed), in reasoning mode one without a proper thinking span.
    """
    task = _task(record)
    if not completion.finished:
        return False
    if record.thinking == "fast" and completion.reasoning.strip():
        return False
    if record.thinking == "reasoning" and not completion.well_formed:
        return False
    return task.matches(record, completion.answer)


def label_correct(record: Record) -> bool:
    """Whether the record's own last message, which training would learn, gives the right answer.

    Only its text counts, as the thinking span of a label is made when it is rendered. Raises UserError like `expected`,
    and for a record that does not end with an assistant's message.
    """
    last = record.messages[-1]
    if last.role != "assistant":
        raise UserError(f"record {record.id!r}: it ends with a {last.role} message, so it has no answer to verify")
    return _task(record).matches(record, last.content)


def _task(record: Record) -> ModuleType:
    name = record.meta.get("task")
    if not isinstance(name, str) or name not in TASKS:
        raise UserError(f"record {record.id!r}: meta.task is {name!r}; set it to one of {', '.join(TASKS)}")
    return TASKS[name]
