"""Data sources: files, the bundled generator and stages become conversation records; later code does not know which.

Each source is registered with its options and its loader. A plugin registers its own in the same way.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mindspore_impl import files
from mindspore_impl.data import difficulty, list_programs
from mindspore_impl.data.options import DatasetOptions, FileSet, ListProgramsSet, StageSet
from mindspore_impl.errors import UserError
from mindspore_impl.schema import Kinds, check_ranges, nearest
from mindspore_impl.text.records import Message, Record, parse_messages, parse_record, refuse, require_keys, text_field

CALCULATOR = re.compile(r"<<[^<>]*>>")  # gsm8k's marks: 48/2 = <<48/2=24>>24
BOM = b"\xef\xbb\xbf"
SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip

Row = TypeVar("Row")
Adapter = Callable[[dict, str, str, str], Record]  # (object of a file, its place, an id for it, thinking) -> record


@dataclass(frozen=True)
class SourceKind:
    """A source of records: its options, and how they are loaded."""

    options: type[DatasetOptions]
    load: Callable[[Any, int], Iterable[Record]] | None = None  # (options, the run's seed) -> records
    adapter: Adapter | None = None  # of a source that reads a file one object at a time


SOURCES: dict[str, SourceKind] = {}


def register_source(name: str, options: type[DatasetOptions]) -> Callable:
    """Decorator of a loader, (options, seed) -> records: add a source of this name with options of this dataclass.

    The seed is the run's. The loader applies `skip` and `count`, and leaves `keep` alone. The fields of `options` are
    the keys of such a set; a field `path` is a file, whose name and content are part of the fingerprint of every stage
    that reads the set.
    """

    def register(load: Callable[[Any, int], Iterable[Record]]) -> Callable:
        SOURCES[name] = SourceKind(options, load)
        return load

    return register


def register_file_source(name: str) -> Callable[[Adapter], Adapter]:
    """Decorator of an adapter, which makes one record of one JSON object: add a source of this name that reads files.

    An adapter takes the object, its place for messages ("FILE:LINE"), an id for a record without one, and the set's
    `thinking`. It raises UserError that starts with the place.
    """

    def register(adapter: Adapter) -> Adapter:
        SOURCES[name] = SourceKind(FileSet, adapter=adapter)
        return adapter

    return register


def set_kinds() -> dict[type, Kinds]:
    """The tagged union of `data.sets`, for schema.build."""
    return {DatasetOptions: Kinds("source", {name: kind.options for name, kind in SOURCES.items()})}


def load_set(name: str, options: DatasetOptions, seed: int) -> list[Record]:
    """The records of the set `name`: `options.skip` are skipped, `options.count` taken, those in `options.keep` kept.

    Raises UserError naming data.sets.<name>.<key> for a setting, and file:line and the field for malformed data.
    """
    records = load_whole(name, options, seed)
    return records if options.keep is None else difficulty.kept(records, options.keep, f"data.sets.{name}.keep")


def load_whole(name: str, options: DatasetOptions, seed: int) -> list[Record]:
    """`load_set` before `options.keep` is applied."""
    key = f"data.sets.{name}"
    check_ranges(options, key)
    if options.source not in SOURCES:
        raise UserError(f"{key}.source: {options.source!r} is unknown{nearest(options.source, SOURCES)}")
    kind = SOURCES[options.source]
    try:
        return list(kind.load(options, seed)) if kind.load else _load_file(name, kind.adapter, options)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


register_source("list_programs", ListProgramsSet)(list_programs.generate)


@register_source("stage", StageSet)
def _made_by_stage(options: StageSet, seed: int) -> Iterable[Record]:
    raise UserError(f"stage {options.stage!r} makes these records; they can be read inside its run alone")


def _load_file(name: str, adapter: Adapter, options: FileSet) -> list[Record]:
    path = Path(options.path)
    records, places = [], {}
    for place, value in in_window(_rows(path), options):
        record = adapter(value, f"{path}:{place}", f"{name}:{place}", options.thinking)
        if record.id in places:
            refuse(f"{path}:{place}", f"the id {record.id!r} was already used at {places[record.id]}; ids must differ")
        places[record.id] = f"{path}:{place}"
        records.append(record)
    if len(records) < (options.count or 1):
        there = sum(1 for _ in _part(_rows(path), options))
        part = f", {options.split} part with holdout={options.holdout}," if options.holdout else ""
        window = f"skip={options.skip} and count={options.count}"
        raise UserError(f"{window} ask for more than {path}{part} has: it holds {there} records")
    return records


def in_window(rows: Iterable[Row], options: FileSet) -> Iterator[Row]:
    """The rows of a file that a set takes: of its split, `skip` are skipped and `count` taken."""
    stop = None if options.count is None else options.skip + options.count
    return islice(_part(rows, options), options.skip, stop)


def _part(rows: Iterable[Row], options: FileSet) -> Iterator[Row]:
    if options.split == "validation" and not options.holdout:
        raise UserError("split=validation: no record is held out; set holdout to how many, here and in training sets")
    held: deque[Row] = deque()
    for row in rows:
        held.append(row)
        if len(held) > options.holdout:
            row = held.popleft()
            if options.split == "train":
                yield row
    if options.split == "validation":
        yield from held


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    place = None
    for place, text in lines_of(path):
        yield place, object_of(text, path, place)
    if place is None:
        raise UserError(f"{path}: the file holds no record")


def lines_of(path: Path) -> Iterator[tuple[str, Any]]:
    """(line number, bytes) of JSON lines, or ("[index]", value) of a JSON array; blank lines are skipped."""
    with files.reading(path), open(path, "rb") as file:
        start = len(BOM) if file.read(len(BOM)) == BOM else 0
        file.seek(start)
        if file.read(4096).lstrip()[:1] == b"[":
            yield from ((f"[{index}]", value) for index, value in enumerate(files.read_json(path)))
            return
        file.seek(start)
        yield from ((str(number), line) for number, line in enumerate(file, start=1) if not line.isspace())


def object_of(text: Any, path: Path, place: str) -> dict:
    """The object of an entry of `lines_of`. Raises UserError that names its place when it is none."""
    value = files.parse_object(text, path, int(place)) if isinstance(text, bytes) else text
    if not isinstance(value, dict):
        raise UserError(f"{path}:{place}: expected an object, found {type(value).__name__}")
    return value


@register_file_source("gsm8k")
def _gsm8k(value: dict, where: str, identity: str, thinking: str) -> Record:
    """question, answer: the worked solution, a line "#### ", the number."""
    require_keys(value, ("question", "answer"), where)
    question, text = text_field(value, "question", where), text_field(value, "answer", where)
    solution, mark, answer = text.rpartition("####")
    answer = answer.strip()
    if not mark or not answer:
        refuse(where, "the field 'answer' has no '#### <result>' at its end")
    reasoning = CALCULATOR.sub("", solution).strip()
    meta = {"task": "gsm8k", "answer": answer.replace(",", "")}
    return _question(value, where, identity, thinking, (question, answer, reasoning), meta)


def _pair(keys: tuple[str, ...], value: dict, where: str, identity: str, thinking: str) -> Record:
    """Question, answer and, of three keys, text to append to the question; `reasoning` and `system` are optional."""
    require_keys(value, keys[:2], where)
    question, answer = (text_field(value, key, where) for key in keys[:2])
    extra = [text for key in keys[2:] if (text := _optional(value, key, where))]
    texts = ("\n\n".join([question, *extra]), answer, _optional(value, "reasoning", where))
    return _question(value, where, identity, thinking, texts)


register_file_source("alpaca")(partial(_pair, ("instruction", "output", "input")))
register_file_source("prompt_answer")(partial(_pair, ("prompt", "answer")))


@register_file_source("sharegpt")
def _sharegpt(value: dict, where: str, identity: str, thinking: str) -> Record:
    """conversations: [{from, value}]. An assistant value may open with <think>reasoning</think>."""
    require_keys(value, ("conversations",), where)
    turns = value["conversations"]
    if not isinstance(turns, list) or not turns:
        refuse(where, "the field 'conversations' must be an array with at least one turn")
    system = _optional(value, "system", where)
    messages = [{"role": "system", "content": system}] if system else []
    for index, turn in enumerate(turns):
        place = f"{where}: conversations[{index}]"
        if not isinstance(turn, dict):
            refuse(place, "expected an object with 'from' and 'value'")
        require_keys(turn, ("from", "value"), place)
        role, text = SHAREGPT_ROLES.get(text_field(turn, "from", place)), text_field(turn, "value", place)
        if role is None:
            refuse(place, f"unknown 'from' {turn['from']!r}; known: {', '.join(SHAREGPT_ROLES)}")
        reasoning, mark, answer = text.lstrip().removeprefix("<think>").partition("</think>")
        thought = role == "assistant" and text.lstrip().startswith("<think>")
        if thought and not mark:
            refuse(place, "the field 'value' opens <think> and never closes it")
        if role == "assistant" and thinking == "reasoning" and not thought:
            refuse(place, "no <think>...</think> before it, which thinking: reasoning needs; or use thinking: fast")
        messages.append({"role": role, "content": answer.strip() if thought else text})
        if thought and thinking == "reasoning":
            messages[-1]["reasoning"] = reasoning.strip()
    if messages[-1]["role"] != "assistant":
        refuse(where, "the last turn of 'conversations' must be the assistant's (from: gpt); remove the turns after it")
    parsed = parse_messages(messages, where)
    return Record(identity, parsed, thinking, {"task": "exact", "answer": parsed[-1].content})


@register_file_source("records")
def _record(value: dict, where: str, identity: str, thinking: str) -> Record:
    """The record form itself; a missing id is the place, a missing thinking the set's."""
    return parse_record({"id": identity, "thinking": thinking} | value, where)


def _optional(value: dict, key: str, where: str) -> str:
    return "" if value.get(key) is None else text_field(value, key, where)


def _question(
    value: dict, where: str, identity: str, thinking: str, texts: tuple[str, str, str], meta: dict | None = None
) -> Record:
    """One question, its answer and reasoning (`texts`) as a record; the reasoning is demanded in reasoning mode."""
    question, answer, reasoning = texts
    for text, what in ((question, "question"), (answer, "answer")):
        if not text.strip():
            refuse(where, f"the {what} is empty; fill it or remove the record")
    if thinking == "reasoning" and not reasoning.strip():
        refuse(where, "there is no reasoning beside the answer, which thinking: reasoning needs; use thinking: fast")
    system = _optional(value, "system", where)
    messages = [Message("system", system)] if system else []
    kept = reasoning if thinking == "reasoning" else None
    messages += [Message("user", question), Message("assistant", answer, kept)]
    return Record(identity, tuple(messages), thinking, meta or {"task": "exact", "answer": answer})
