"""Resumable work in parts: each part is written atomically with a JSON record, and ranks share the missing parts.

    parts/<key>/part_00000.jsonl, part_00000.json   a part and its record
    rollouts.jsonl, rollouts.json                   the result, published in the same way; then the parts are deleted

The record is written after the file and holds its SHA-256, so that after a kill every part is either complete or counts
as missing. The content and the number of parts must not depend on the number of ranks: a run may be continued with
another number of them.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError

FOLDER = "parts"
Publish = Callable[[Path], object]  # writes the file of a part, atomically


def publish(path: Path, write: Publish, record: dict) -> dict:
    """Write the file of a part with `write`, then its record; returns the record with the file's `sha256`."""
    write(path)
    record = record | {"sha256": files.sha256_file(path)}
    files.write_json(path.with_suffix(".json"), record)
    return record


def read_record(path: Path) -> dict | None:
    """The record of the part `path` when the part is complete and undamaged, else None."""
    runtime.reset_watchdog()
    try:
        record = files.read_json(path.with_suffix(".json"))
        return record if record["sha256"] == files.sha256_file(path) else None
    except (UserError, KeyError, TypeError):
        return None


def share(
    paths: list[Path],
    make: Callable[[int], tuple[Publish, dict]],
    known: Callable[[int], dict | None] | None = None,
) -> list[dict]:
    """Make the missing parts, the ranks taking turns, and return the records of all parts in order on every rank.

    make(number) -> (write, record) computes the part `paths[number]`; its record gets `sha256`, `rank` and `seconds`.
    known(number) is called on rank 0 alone and returns the record of an existing part (default: `read_record`). Every
    rank must call this with the same paths. SIGTERM is handled between parts: Stopped loses no finished part.
    """
    known = known or (lambda number: read_record(paths[number]))
    records = ranks.on_rank_zero(lambda: list(map(known, range(len(paths)))))
    missing = [number for number, record in enumerate(records) if record is None]
    made = []
    for number in missing[runtime.rank() :: runtime.world_size()]:
        ranks.check_stop()
        started = time.perf_counter()
        write, record = make(number)
        spent = {"rank": runtime.rank(), "seconds": time.perf_counter() - started}
        made.append((number, publish(paths[number], write, record | spent)))
    for number, record in [item for of_rank in ranks.gather(made) for item in of_rank]:
        records[number] = record
    return records


def seconds(records: list[dict]) -> float:
    """Wall time of the parts in seconds: the ranks work side by side, so the slowest rank counts."""
    spent = Counter()
    for record in records:
        spent[record.get("rank", 0)] += record.get("seconds", 0.0)
    return max(spent.values(), default=0.0)


def lines_of(paths: list[Path]) -> list[dict]:
    """The objects of the parts' JSON lines, in the order of the parts."""
    return [line for path in paths for _, line in files.read_jsonl(path)]


def result(path: Path, plan: str) -> dict | None:
    """The metrics of the result `path` when it was published for the same `plan` (a hash) and is intact, else None."""
    record = read_record(path)
    if record is None or record.get("plan") != plan:
        return None
    _clean_up(path)
    return record["metrics"]


def publish_result(path: Path, write: Publish, plan: str, metrics: dict) -> dict:
    """Write the result `path` from the parts with `write`, delete the parts, return `metrics`. Rank 0 only."""
    publish(path, write, {"plan": plan, "metrics": metrics})
    _clean_up(path)
    return metrics


def _clean_up(path: Path) -> None:
    """Delete the parts of a published result and the temporary files of killed writers."""
    shutil.rmtree(path.parent / FOLDER, ignore_errors=True)
    for written in (path, path.with_suffix(".json")):
        for left in path.parent.glob(f".{written.name}.*.tmp"):
            left.unlink(missing_ok=True)
