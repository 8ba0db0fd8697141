"""The interface of the selection steps: items, reasons to drop them, and the declaration of a step.

There are two kinds of steps. A *check* decides on one record at a time: `make(options, context)` returns a function
from an Item to a Drop, or to None for a record that is kept. A *stream* step sees all records:
`make(options, context, items)` is a generator that yields the kept items (or new ones) and passes the others to
`context.drop(item, Drop(...))`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mindspore_impl.data.selection.options import Part
from mindspore_impl.data.selection.words import word_hashes
from mindspore_impl.errors import UserError
from mindspore_impl.text.records import Record


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
            self._parts[part] = _part(self.record, part)
        return self._parts[part]

    def word_hashes(self, part: Part) -> np.ndarray:
        """uint64 hashes of the words of a part, computed once for all steps."""
        if part not in self._hashes:
            self._hashes[part] = word_hashes(self.text(part))
        return self._hashes[part]


def _part(record: Record, part: str) -> str:
    last = record.messages[-1]
    answered = last.role == "assistant"
    if part == "answer":
        return last.content if answered else ""
    if part == "reasoning":
        return last.reasoning or "" if answered else ""
    if part == "response":
        messages = (last,) if answered else ()
    else:
        messages = record.messages[:-1] if part == "prompt" and answered else record.messages
    if len(messages) == 1 and not messages[0].reasoning:
        return messages[0].content
    return "\n".join([text for message in messages for text in (message.reasoning, message.content) if text])


@dataclass
class Context:
    """What a step may read and call."""

    where: str  # the step's place in the recipe, for messages: steps[2].near_duplicates
    records: Callable[[str], Iterator[Item]]  # the records of a set of the recipe, by its name
    drop: Callable[[Item, Drop], None]  # for a stream step: drop an item
    scratch: Path  # a folder for temporary files, deleted at the end
    shared: dict[tuple, Any] = field(default_factory=dict)  # results that several steps of a run use
    notes: dict[str, Any] = field(default_factory=dict)  # shown in the report of this step

    def refuse(self, text: str) -> UserError:
        """The error to raise about this step's settings."""
        return UserError(f"{self.where}: {text}")


Check = Callable[[Item], Drop | None]


@dataclass(frozen=True)
class Step:
    """The declaration of a step in steps.STEPS: its options and one of the two kinds of functions."""

    options: type
    check: Callable[[Any, Context], Check] | None = None
    stream: Callable[[Any, Context, Iterator[Item]], Iterator[Item]] | None = None
    files: Callable[[Any], list[str]] = lambda options: []  # files it reads, by whose hashes a selection is repeated
    sets: Callable[[Any], list[str]] = lambda options: []  # sets of the recipe it reads


def group_of(item: Item, by: str) -> str:
    """The group of a record: its set, its thinking mode, or its meta.task ("none" without one)."""
    if by == "set":
        return item.set
    return item.record.thinking if by == "thinking" else str(item.record.meta.get("task", "none"))
