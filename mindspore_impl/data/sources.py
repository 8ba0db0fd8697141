"""Data sources: files, the bundled generator and stages become conversation records; later code does not know which.

Each source is registered with its options and its loader. A plugin registers its own in the same way.
"""

import difflib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mindspore_impl import files
from mindspore_impl.data import difficulty, list_programs
from mindspore_impl.data.answers import final_number, ungrouped
from mindspore_impl.data.options import DatasetOptions, FileSet, ListProgramsSet, StageSet
from mindspore_impl.errors import UserError
from mindspore_impl.schema import Kinds, check_ranges, nearest
from mindspore_impl.text.records import (
    FLAGS,
    Message,
    Record,
    as_object,
    check_turns,
    new_id,
    parse_message,
    parse_record,
    refuse,
    require_keys,
    text_field,
)

CALCULATOR = re.compile(r"<<[^<>]*>>")  # gsm8k's marks: 48/2 = <<48/2=24>>24
BOM = b"\xef\xbb\xbf"
SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
CONTEXT = ("system", "history")  # fields of a question: text before it, and the earlier [question, answer] pairs
MEANINGFUL = {
    **dict.fromkeys(("tools", "functions", "tool_calls"), "no chat template here writes tools; write them as text"),
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "write what they show as text"),
    **dict.fromkeys(("reasoning", "reasoning_content", "thinking"), "give it as the `reasoning` of the answer"),
    **dict.fromkeys(("system", "system_prompt"), "give it as the first turn or as `system`"),
    **dict.fromkeys(FLAGS, "give it to each turn, as 0 or 1"),
    "history": "give the earlier turns as turns",
}  # columns that no record may lose, and what to do with them where they are not read
OF_A_QUESTION = dict.fromkeys(("context", "input", "conversation_history"), "write it into the question")

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
    `thinking`. It raises UserError that starts with the place, and makes its turns with `parse_message`, which holds
    the rules of all sources.
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
        return list(kind.load(options, seed)) if kind.load else _load_file(name, options)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


register_source("list_programs", ListProgramsSet)(list_programs.generate)


@register_source("stage", StageSet)
def _made_by_stage(options: StageSet, seed: int) -> Iterable[Record]:
    raise UserError(f"stage {options.stage!r} makes these records; they can be read inside its run alone")


def _load_file(name: str, options: FileSet) -> list[Record]:
    path = Path(options.path)
    records, places = [], {}
    for record, where, _ in read_file(options, name):
        new_id(record.id, where, places)
        records.append(record)
    if len(records) < (options.count or 1):
        there = sum(1 for _ in _part(_lines_of(path), options))
        part = f", {options.split} part with holdout={options.holdout}," if options.holdout else ""
        window = f"skip={options.skip} and count={options.count}"
        raise UserError(f"{window} ask for more than {path}{part} has: it holds {there} records")
    return records


def read_file(
    options: FileSet, identity: str, mend: Callable[[dict, Any], dict] = lambda value, text: value,
    refused: Callable[[str, UserError], None] | None = None,
) -> Iterator[tuple[Record, str, bytes | None]]:  # fmt: skip
    """(record, FILE:LINE, its line where that is a whole record as it stands) of what a set takes of a file.

    The one reader of training, `--check` and selection: of the set's split, `skip` are skipped and `count` taken.

    identity: an entry without an id gets `<identity>:<line>`; mend: (object, its line) -> the object to be read in its
    place; refused: receives the place and fault of what is no record (None: it is raised). Raises UserError for a file
    that cannot be read or holds nothing.
    """
    adapter = SOURCES[options.source].adapter
    path, stop = Path(options.path), None if options.count is None else options.skip + options.count
    for place, text in islice(_part(_lines_of(path), options), options.skip, stop):
        where = f"{path}:{place}"
        try:
            value = files.parse_object(text, path, int(place)) if isinstance(text, bytes) else as_object(text, where)
            mended = mend(value, text)
            record = adapter(mended, where, f"{identity}:{place}", options.thinking)
        except UserError as error:
            if refused is None:
                raise
            refused(where, error)
            continue
        whole = options.source == "records" and isinstance(text, bytes) and "id" in value and "thinking" in value
        yield record, where, text.strip() if whole and mended is value else None


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


def _lines_of(path: Path) -> Iterator[tuple[str, Any]]:
    """(line number, bytes) of JSON lines, or ("[index]", value) of a JSON array; blank lines are skipped."""
    place = None
    with files.open_lines(path) as file:
        start = len(BOM) if file.read(len(BOM)) == BOM else 0
        file.seek(start)
        if file.read(4096).lstrip()[:1] == b"[":
            for index, value in enumerate(files.read_json(path)):
                yield (place := f"[{index}]"), value
        else:
            file.seek(start)
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield (place := str(number)), line
    if place is None:
        raise UserError(f"{path}: the file holds no record")


@register_file_source("gsm8k")
def _gsm8k(value: dict, where: str, identity: str, thinking: str) -> Record:
    """question, answer: the worked solution, a line "#### ", the number."""
    require_keys(value, ("question", "answer"), where)
    value = _columns(value, ("question", "answer", *CONTEXT), where)
    question, text = text_field(value, "question", where), text_field(value, "answer", where)
    solution, mark, answer = text.rpartition("####")
    answer = answer.strip()
    if not mark or final_number(answer) is None:
        refuse(where, "the field 'answer' has no '#### <number>' at its end")
    reasoning = CALCULATOR.sub("", solution).strip()
    meta = {"task": "gsm8k", "answer": ungrouped(answer)}
    return _question(value, where, identity, thinking, (question, answer, reasoning), meta)


def _pair(keys: tuple[str, ...], value: dict, where: str, identity: str, thinking: str) -> Record:
    """Question, answer and, of three keys, text to append to the question; `reasoning` and CONTEXT are optional."""
    require_keys(value, keys[:2], where)
    value = _columns(value, (*keys, "reasoning", *CONTEXT), where)
    question, answer = (text_field(value, key, where) for key in keys[:2])
    extra = [text for key in keys[2:] if (text := _optional(value, key, where))]
    texts = ("\n\n".join([question, *extra]), answer, _optional(value, "reasoning", where))
    return _question(value, where, identity, thinking, texts)


register_file_source("alpaca")(partial(_pair, ("instruction", "output", "input")))
register_file_source("prompt_answer")(partial(_pair, ("prompt", "answer")))


@register_file_source("sharegpt")
def _sharegpt(value: dict, where: str, identity: str, thinking: str) -> Record:
    """conversations: [{from, value}]; a turn may have the other fields of a message, such as `weight`."""
    require_keys(value, ("conversations",), where)
    value = _columns(value, ("conversations", "system"), where)
    turns = value["conversations"]
    if not isinstance(turns, list) or not turns:
        refuse(where, "the field 'conversations' must be an array with at least one turn")
    messages = _system(value, where)
    for index, turn in enumerate(turns):
        place = f"{where}: conversations[{index}]"
        if not isinstance(turn, dict):
            refuse(place, "expected an object with 'from' and 'value'")
        require_keys(turn, ("from", "value"), place)
        role, text = SHAREGPT_ROLES.get(text_field(turn, "from", place)), text_field(turn, "value", place)
        if role is None:
            refuse(place, f"unknown 'from' {turn['from']!r}; known: {', '.join(SHAREGPT_ROLES)}")
        rest = {key: turn[key] for key in turn if key not in ("from", "value")}
        messages.append(parse_message(rest | {"role": role, "content": text}, place))
    if messages[-1].role != "assistant":
        refuse(where, "the last turn of 'conversations' must be the assistant's (from: gpt); remove the turns after it")
    return _answered(messages, where, identity, thinking)


@register_file_source("records")
def _record(value: dict, where: str, identity: str, thinking: str) -> Record:
    """The record form itself; a missing id is the place, a missing thinking the set's."""
    require_keys(value, ("messages",), where)
    value = _columns(value, ("id", "messages", "thinking", "meta"), where)
    return parse_record({"id": identity, "thinking": thinking} | value, where)


def _columns(value: dict, known: tuple[str, ...], where: str) -> dict:
    """The known fields of an object; any other column is left out, but for one that changes what the record means."""
    meaningful = MEANINGFUL | (OF_A_QUESTION if "history" in known else {})
    for key, content in value.items():
        if key in known:
            continue
        if near := _meant(key, tuple(name for name in known if name not in value)):
            refuse(where, f"unknown field {key!r}; did you mean {near[0]!r}?")
        text = content.strip() if isinstance(content, str) else content
        harmless = text != 0 if key in ("loss", "train") else (key, text) == ("weight", 1)  # a loss may be measured
        if key in meaningful and text not in (None, "", [], {}, "[]", "{}", "null") and not harmless:
            refuse(where, f"the field {key!r} is not read, and would change the record; {meaningful[key]} or remove it")
    return {key: value[key] for key in known if key in value}


@lru_cache
def _meant(key: str, absent: tuple[str, ...]) -> list[str]:
    return difflib.get_close_matches(key.lower(), absent, 1, 0.85)


def _optional(value: dict, key: str, where: str) -> str:
    return "" if value.get(key) is None else text_field(value, key, where)


def _question(
    value: dict, where: str, identity: str, thinking: str, texts: tuple[str, str, str], meta: dict | None = None
) -> Record:
    """One question, its answer and reasoning (`texts`) as a record, behind the turns of its history."""
    history, messages = value.get("history") or [], _system(value, where)
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        refuse(where, "the field 'history' must be an array of [question, answer] pairs")
    turns = [(f"{where}: history[{index}]", (*pair, None)) for index, pair in enumerate(history)] + [(where, texts)]
    for place, (question, answer, reasoning) in turns:
        messages.append(parse_message({"role": "user", "content": question}, f"{place}: question"))
        found = {"role": "assistant", "content": answer, "reasoning": reasoning or None}
        messages.append(parse_message(found, f"{place}: answer"))
    return _answered(messages, where, identity, thinking, meta)


def _system(value: dict, where: str) -> list[Message]:
    system = _optional(value, "system", where)
    return [Message("system", system)] if system else []


def _answered(messages: list[Message], where: str, identity: str, thinking: str, meta: dict | None = None) -> Record:
    """Parsed turns as a record; reasoning is demanded in reasoning mode and left out in fast mode."""
    check_turns(messages, where, thinking, "turns")
    for message in messages:
        learned = message.role == "assistant" and message.supervised
        if thinking == "reasoning" and learned and not (message.reasoning or "").strip():
            refuse(where, "an answer has no reasoning beside it, which thinking: reasoning needs; use thinking: fast")
    turns = [message if thinking == "reasoning" else replace(message, reasoning=None) for message in messages]
    return Record(identity, tuple(turns), thinking, meta or {"task": "exact", "answer": turns[-1].content})
