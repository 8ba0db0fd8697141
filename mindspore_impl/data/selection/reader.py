"""Data sets as streams of Items: JSON lines are read one at a time, so that memory does not grow with the file."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mindspore_impl.data.options import DatasetOptions
from mindspore_impl.data.selection.stream import Drop, Item
from mindspore_impl.data.sources import SOURCES, load_set, read_file
from mindspore_impl.errors import UserError
from mindspore_impl.schema import check_ranges

HALF_PAIR = re.compile("[\ud800-\udfff]")
Refused = Callable[[str, Drop], None]  # place of a line that is not a record, and the reason


def read_set(
    name: str, options: DatasetOptions, seed: int = 0, mended: Callable[[], None] | None = None,
    refused: Refused | None = None,
) -> Iterator[Item]:  # fmt: skip
    """The records of the set `name` in the order of its file: `skip` are skipped, then `count` taken.

    JSON lines are read one at a time; a JSON array, and a source that is no file, whole.

    Args:
        name: Name of the set in `data.sets`; a line without an id gets `<name>:<line>`.
        options: The set.
        seed: Seed of the bundled generator.
        mended: Called for each line in which a lone surrogate became U+FFFD; None: such a line is not a record.
        refused: Receives each line that is not a record; None: UserError names file:line.
    """
    if options.keep is not None:
        raise UserError(f"data.sets.{name}.keep: a recipe reads a whole set; use its step `band` instead")
    if SOURCES[options.source].adapter is None:
        yield from (Item(record, name, record.id) for record in load_set(name, options, seed))
        return
    check_ranges(options, f"data.sets.{name}")

    def mend(value: dict, text: bytes | dict) -> dict:
        if not mended or not _has_escape(text) or (found := _mended(value)) == value:
            return value
        mended()
        return found

    def drop(where: str, error: UserError) -> None:
        refused(where, Drop("line that is not a record", str(error).removeprefix(f"{where}: ")))

    found = read_file(options, name, mend, refused and drop)
    yield from (Item(record, name, where, line) for record, where, line in found)


def count_lines(path: str | Path) -> int:
    """Number of lines of a file, for a progress bar."""
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _has_escape(text: bytes | dict) -> bool:
    """Whether a lone surrogate is possible: UTF-8 cannot hold one, only JSON escapes can."""
    return not isinstance(text, bytes) or b"\\ud" in text or b"\\uD" in text


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return HALF_PAIR.sub("\ufffd", value)
    if isinstance(value, dict):
        return {key: _mended(entry) for key, entry in value.items()}
    return [_mended(entry) for entry in value] if isinstance(value, list) else value
