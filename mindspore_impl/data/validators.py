"""Whole files against their form: every problem on a line of its own, with file and line (of a store: shard and row).

Nothing stops at the first problem, and nothing is held but the names of records (and a file that is one JSON array).
The rules are those of their owners: `records.py`, `rollouts.py`, `chat.py`, `teacher_store.py`.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from mindspore_impl import files
from mindspore_impl.data import teacher_store
from mindspore_impl.data.options import DatasetOptions
from mindspore_impl.data.rollouts import parse_rollout, to_sample
from mindspore_impl.data.selection.reader import read_set
from mindspore_impl.errors import UserError
from mindspore_impl.text.chat import render
from mindspore_impl.text.tokenizer import Tokenizer

Tell = Callable[[str], None]
ROWS = 8192  # of a store, looked at together


def check_all(paths: Iterable[str | Path], tokenizer: Tokenizer | None = None, tell: Tell = print) -> int:
    """Check record files, rollout files and teacher stores: `tell` each problem, and at the end the counts.

    Without a tokenizer nothing is rendered and no id is held against a vocabulary. Returns the number of problems.
    Raises UserError when a path is not there, cannot be read, or is a folder without a teacher store.
    """
    summaries, problems = [], 0
    for path in map(Path, paths):
        check = check_store if path.is_dir() else _check_rollouts if _holds_rollouts(path) else _check_records
        counts = check(path, tokenizer, tell)
        problems += counts["problems"]
        unseen = "" if tokenizer is not None or path.is_dir() else "; not rendered, as no tokenizer is given"
        summaries.append(f"{path}: {', '.join(f'{number:,} {what}' for what, number in counts.items())}{unseen}")
    for summary in summaries:
        tell(summary)
    return problems


class _Problems:
    """Tells problems, one line each, and counts what was seen."""

    def __init__(self, tell: Tell, *seen: str):
        self.tell, self.counts = tell, Counter({what: 0 for what in (*seen, "problems")})

    def add(self, where: str, fault: UserError | str) -> None:
        """Tell `fault`, with its place in front unless it says it itself."""
        self.counts["problems"] += 1
        text = " ".join(str(fault).split())
        self.tell(text if text.startswith(where) else f"{where}: {text}")


def _holds_rollouts(path: Path) -> bool:
    """Whether the first line that is an object is a rollout: only those say how they ended."""
    for _, _, value in files.scan_jsonl(path):
        if isinstance(value, dict):
            return "finish" in value
    return False


def _check_records(path: Path, tokenizer: Tokenizer | None, tell: Tell) -> Counter:
    problems, places = _Problems(tell, "records"), {}
    options = DatasetOptions(source="records", path=str(path))
    for item in read_set("records", options, refused=lambda where, drop: problems.add(where, drop.detail)):
        record, where = item.record, item.place
        problems.counts["records"] += 1
        if (first := places.setdefault(record.id, where)) != where:
            problems.add(where, f"the id {record.id!r} was already used at {first}; ids must differ")
        if tokenizer is not None and record.messages[-1].role == "assistant":  # else it is a prompt
            try:
                render(record, tokenizer)
            except UserError as error:
                problems.add(where, error)
    if not places and not problems.counts["problems"]:
        problems.add(str(path), "the file holds no record")
    return problems.counts


def _check_rollouts(path: Path, tokenizer: Tokenizer | None, tell: Tell) -> Counter:
    problems, lines = _Problems(tell, "rollouts"), {}
    for number, _, value in files.scan_jsonl(path):
        where = f"{path}:{number}"
        try:
            if isinstance(value, UserError):
                raise value
            rollout = parse_rollout(value, where, tokenizer)
            problems.counts["rollouts"] += 1
            if (first := lines.setdefault(rollout.id, number)) != number:
                problems.add(where, f"rollout {rollout.id!r} is on line {first} already")
            if tokenizer is not None:
                to_sample(rollout, tokenizer)
        except UserError as error:
            problems.add(where, error)
    return problems.counts


def check_store(folder: Path, tokenizer: Tokenizer | None, tell: Tell) -> Counter:
    """Check a teacher store: its manifest, the hash and the counts of each shard, and every row. Returns counts.

    Raises UserError when the folder has no manifest, so that there is no store to check.
    """
    problems = _Problems(tell, "shards", "sequences", "rows")
    if not folder.is_dir() or not (folder / teacher_store.MANIFEST).exists():
        raise UserError(f"{folder / teacher_store.MANIFEST}: no such file, so there is no finished teacher store")
    try:
        header, shards, manifest = teacher_store.read_listing(folder / teacher_store.MANIFEST)
    except UserError as error:
        problems.add(str(folder), error)
        return problems.counts
    where = str(folder / teacher_store.MANIFEST)
    if tokenizer is not None and tokenizer.sha256 != header.tokenizer_sha256:
        problems.add(where, f"made with the tokenizer {header.tokenizer_sha256[:16]}, not {tokenizer.sha256[:16]}")
    for entry in shards:
        problems.counts["shards"] += 1
        try:
            teacher_store.check_shard(folder, entry)
        except UserError as error:
            problems.add(str(folder / entry["file"]), error)
        _check_shard(folder / entry["file"], entry, header, problems)
    if (manifest.get("counts") or {}).get("positions") != sum(entry["positions"] for entry in shards):
        problems.add(where, "its counts do not agree with its shards")
    return problems.counts


def _check_shard(path: Path, entry: dict, header: teacher_store.StoreHeader, problems: _Problems) -> None:
    """The index and the rows of a shard, as far as it can be opened at all."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return  # said by its hash
    try:
        problems.counts["sequences"] += len(teacher_store.read_index(path, entry))
    except (UserError, ValueError, IndexError) as error:
        problems.add(str(path), error)
    try:
        with safe_open(str(path), "np") as shard:
            count = shard.get_slice("tail_logp").get_shape()[0]
            for first in range(0, count, ROWS):
                rows = teacher_store.rows_of(shard, header.top_k, first, min(ROWS, count - first))
                problems.counts["rows"] += len(rows[2])
                _check_rows(path, header, first, rows, problems)
    except (SafetensorError, OSError, ValueError, IndexError) as error:
        problems.add(str(path), f"its rows cannot be read ({error}); capture again")


def _check_rows(path: Path, header, first: int, rows: tuple[np.ndarray, ...], problems: _Problems) -> None:
    """Each bad row once, with the first of its faults."""
    told_S = np.zeros(len(rows[2]), bool)
    faults: dict[int, str] = {}
    for bad_S, fault in teacher_store.row_faults(header, *rows):
        faults |= {int(row): fault for row in np.flatnonzero(bad_S & ~told_S)}
        told_S |= bad_S
    for row in sorted(faults):
        problems.add(f"{path}: row {first + row}", faults[row])
