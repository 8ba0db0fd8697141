"""Validation of whole files: every problem on a line of its own, with file and line (of a store: shard and row).

Validation continues after a problem, and memory holds only the ids of records (and a file that is one JSON array). The
rules are those of `records.py`, `rollouts.py`, `chat.py` and `teacher_store.py`.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from mindspore_impl import files
from mindspore_impl.data import teacher_store
from mindspore_impl.data.options import FileSet
from mindspore_impl.data.rollouts import parse_rollout, to_sample
from mindspore_impl.data.selection.reader import read_set
from mindspore_impl.errors import UserError
from mindspore_impl.text.chat import samples_of
from mindspore_impl.text.records import new_id
from mindspore_impl.text.tokenizer import Tokenizer, check_tokenizer

Tell = Callable[[str], None]
RECORDS = FileSet(source="records", path="")
ROWS = 8192  # of a store, checked together


def check_all(
    paths: Iterable[str | Path], tokenizer: Tokenizer | None = None, tell: Tell = print, form: FileSet = RECORDS
) -> int:
    """Check record files, rollout files and teacher stores: `tell` each problem, then the counts of each path.

    form: how a file is read that holds neither rollouts nor a store. Without a tokenizer nothing is rendered and no id
    is compared with a vocabulary. Returns the number of problems.
    Raises UserError when a path does not exist, cannot be read, or is a folder without a teacher store.
    """
    found = {}
    for path in map(Path, paths):
        records = partial(_check_records, form)
        check = check_store if path.is_dir() else _check_rollouts if _holds_rollouts(path) else records
        found[path] = check(path, tokenizer, tell)
    for path, counts in found.items():
        unseen = "" if tokenizer is not None or path.is_dir() else "; not rendered, as no tokenizer is given"
        tell(f"{path}: {', '.join(f'{number:,} {what}' for what, number in counts.items())}{unseen}")
    return sum(counts["problems"] for counts in found.values())


class _Problems:
    """Reports problems, one line each, and counts what was seen."""

    def __init__(self, tell: Tell, *seen: str):
        self.tell, self.counts = tell, Counter(dict.fromkeys((*seen, "problems"), 0))

    def add(self, where: object, fault: Exception | str) -> None:
        """Report `fault`, prefixed with its place unless it starts with it."""
        self.counts["problems"] += 1
        text = " ".join(str(fault).split())
        self.tell(text if text.startswith(str(where)) else f"{where}: {text}")

    def check(self, where: object, call: Callable, *arguments: object) -> None:
        """Report the UserError of a call."""
        try:
            call(*arguments)
        except UserError as error:
            self.add(where, error)


def _holds_rollouts(path: Path) -> bool:
    """Whether the first line that is an object is a rollout: only those have a `finish`."""
    return "finish" in next((value for *_, value in files.scan_jsonl(path) if isinstance(value, dict)), ())


def _check_records(form: FileSet, path: Path, tokenizer: Tokenizer | None, tell: Tell) -> Counter:
    problems, places = _Problems(tell, "records"), {}
    options = replace(form, path=str(path))
    try:
        for item in read_set("records", options, refused=lambda where, drop: problems.add(where, drop.detail)):
            record, where = item.record, item.place
            problems.counts["records"] += 1
            problems.check(where, new_id, record.id, where, places)
            if tokenizer is not None and item.answered:  # else it is a prompt
                problems.check(where, samples_of, [record], tokenizer)
    except UserError as error:  # of the whole file
        problems.add(path, error)
    return problems.counts


def _check_rollouts(path: Path, tokenizer: Tokenizer | None, tell: Tell) -> Counter:
    problems, places = _Problems(tell, "rollouts"), {}

    def check(value: dict | UserError, where: str) -> None:
        if isinstance(value, UserError):
            raise value
        rollout = parse_rollout(value, where, tokenizer)
        problems.counts["rollouts"] += 1
        problems.check(where, new_id, rollout.id, where, places)
        if tokenizer is not None:
            to_sample(rollout, tokenizer)

    for number, _, value in files.scan_jsonl(path):
        problems.check(where := f"{path}:{number}", check, value, where)
    return problems.counts


def check_store(folder: Path, tokenizer: Tokenizer | None, tell: Tell) -> Counter:
    """Count and check the shards and rows of a teacher store. Raises UserError when the folder has no manifest."""
    problems, manifest = _Problems(tell, "shards", "sequences", "rows"), folder / teacher_store.MANIFEST
    if not manifest.exists():
        raise UserError(f"{manifest}: no such file, so there is no finished teacher store")
    try:
        header, shards = teacher_store.read_manifest(folder)
    except UserError as error:
        problems.add(folder, error)
        return problems.counts
    if tokenizer is not None:
        hashes = (header.tokenizer_sha256, tokenizer.sha256)
        problems.check(manifest, check_tokenizer, *hashes, manifest, teacher_store.CAPTURE_AGAIN)
    for entry in shards:
        problems.counts["shards"] += 1
        problems.check(path := folder / entry["file"], teacher_store.check_shard, folder, entry)
        if path.is_file():
            _check_shard(path, entry, header, problems)
    return problems.counts


def _check_shard(path: Path, entry: dict, header: teacher_store.StoreHeader, problems: _Problems) -> None:
    """Check the index and the rows of a shard as far as it can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        problems.counts["sequences"] += len(teacher_store.read_index(path, entry))
    except (UserError, ValueError, IndexError) as error:
        problems.add(path, error)
    try:
        with safe_open(str(path), "np") as shard:
            count = shard.get_slice("tail_logp").get_shape()[0]
            for first in range(0, count, ROWS):
                rows = teacher_store.rows_of(shard, header.top_k, first, min(ROWS, count - first))
                problems.counts["rows"] += len(rows[2])
                faults = list(teacher_store.row_faults(header, *rows))
                worst = {row: fault for bad_S, fault in reversed(faults) for row in np.flatnonzero(bad_S).tolist()}
                for row, fault in sorted(worst.items()):  # each bad row once, with its first fault
                    problems.add(f"{path}: row {first + row}", fault)
    except (SafetensorError, OSError, ValueError, IndexError) as error:
        problems.add(path, f"its rows cannot be read ({error}); capture again")
