"""The interface of the selection steps: items, reasons to drop them, and the registry.

A *rule* decides on single records: `rule(options, item)` returns a Drop, or None for a record that is kept. A *step*
sees all records: `step(options, context, items)` is a generator that yields the kept items (or new ones) and passes the
others to `context.drop(item, Drop(...))`. The type of `options` is a dataclass that declares the options of a recipe;
its fields with `artifact="file"` or `artifact="set"` name what the step reads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

import numpy as np

from mindspore_impl.data.selection.words import word_hashes
from mindspore_impl.errors import UserError
from mindspore_impl.text.records import Record

Part = Literal["conversation", "prompt", "response", "reasoning", "answer"]
Group = Literal["set", "thinking", "task"]


class Drop(NamedTuple):
    """Why a record is dropped. `reason` is counted, so it holds no value of the record; `detail` and `other` may."""

    reason: str
    detail: str = ""
    other: str = ""  # id of the record that it repeats


UNANSWERED = Drop("no answer of the assistant at the end")


class Item:
    """A record with the name of its set and its place (file:line).

    `line` is the source line without line end where it is in record form, and is then written unchanged. A step that
    changes a record yields a new Item.
    """

    __slots__ = ("record", "set", "place", "line", "_parts", "_hashes")

    def __init__(self, record: Record, set_name: str, place: str, line: bytes | None = None):
        self.record, self.set, self.place, self.line = record, set_name, place, line
        self._parts: dict[str, str] = {}
        self._hashes: dict[str, np.ndarray] = {}

    @property
    def answered(self) -> bool:
        """Whether the record ends with an assistant turn, so that it is more than a prompt."""
        return self.record.messages[-1].role == "assistant"

    def text(self, part: Part) -> str:
        """One part of the record; one that is absent is empty.

        `answer` is the last assistant turn's content, `response` its reasoning and content, `prompt` the turns before
        it, `conversation` everything.
        """
        if part not in self._parts:
            self._parts[part] = self._part(part)
        return self._parts[part]

    def _part(self, part: Part) -> str:
        messages, last = self.record.messages, self.record.messages[-1]
        if part in ("answer", "reasoning"):
            return (last.content if part == "answer" else last.reasoning or "") if self.answered else ""
        if part == "response":
            messages = messages[-1:] if self.answered else ()
        elif part == "prompt" and self.answered:
            messages = messages[:-1]
        return "\n".join([text for message in messages for text in (message.reasoning, message.content) if text])

    def word_hashes(self, part: Part) -> np.ndarray:
        """uint64 hashes of the words of a part, computed once for all steps."""
        if part not in self._hashes:
            self._hashes[part] = word_hashes(self.text(part))
        return self._hashes[part]


def group_of(item: Item, by: Group) -> str:
    """The group of a record: its set, its thinking mode, or its meta.task ("none" without one)."""
    if by == "set":
        return item.set
    return item.record.thinking if by == "thinking" else str(item.record.meta.get("task", "none"))


@dataclass
class Context:
    """What a step may read and call."""

    where: str  # the step's place in the recipe, for messages: steps[2].near_duplicates
    records: Callable[[str], Iterator[Item]]  # the records of a set of the recipe, by its name
    drop: Callable[[Item, Drop], None]
    scratch: Path  # a folder for temporary files, deleted at the end
    shared: dict[tuple, Any] = field(default_factory=dict)  # results that several steps of a run use
    notes: dict[str, Any] = field(default_factory=dict)  # shown in the report of this step

    def refuse(self, text: str) -> UserError:
        """The error to raise about this step's settings."""
        return UserError(f"{self.where}: {text}")


Run = Callable[[Any, Context, Iterator[Item]], Iterator[Item]]


class Step(NamedTuple):
    """A registered step."""

    options: type
    run: Run


STEPS: dict[str, Step] = {}  # by the name that a recipe uses


def step(run: Run) -> Run:
    """Decorator of a generator (options, context, items): register it as a step of its own name."""
    STEPS[run.__name__] = Step(get_type_hints(run)["options"], run)
    return run


def rule(check: Callable[[Any, Item], Drop | None]) -> Callable[[Any, Item], Drop | None]:
    """Decorator of a function (options, item): register it as a step of its own name."""

    def run(options: Any, context: Context, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            if drop := check(options, item):
                context.drop(item, drop)
            else:
                yield item

    STEPS[check.__name__] = Step(get_type_hints(check)["options"], run)
    return check
