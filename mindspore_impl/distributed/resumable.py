"""Work in parts: each is published whole, with a note that vouches for it, and the ranks share what is missing.

    parts/<key>/part_00000.jsonl, part_00000.json   a part and its note
    rollouts.jsonl, rollouts.json                   what the parts come to, published in the same way; then they go

The note is written after the file, under the same name with `.json`, and holds its SHA-256: a kill at any moment leaves
parts that are whole and parts that count as missing. What a part holds and how many there are must
not depend on the number of ranks, so that a run may go on with another number of them.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError

FOLDER = "parts"
Publish = Callable[[Path], object]  # writes a part's file, atomically


def note_path(path: Path) -> Path:
    """Where the note of the part `path` is."""
    return path.with_suffix(".json")


def publish(path: Path, write: Publish, note: dict) -> dict:
    """Let `write` make the file of a part, then write its note; returns the note with the file's `sha256`."""
    write(path)
    note = note | {"sha256": files.sha256_file(path)}
    files.write_json(note_path(path), note)
    return note


def read_note(path: Path) -> dict | None:
    """The note of the part `path` when it is complete and undamaged, else None."""
    runtime.reset_watchdog()
    if not (path.is_file() and note_path(path).is_file()):
        return None
    try:
        note = files.read_json(note_path(path))
        return note if note["sha256"] == files.sha256_file(path) else None
    except (UserError, KeyError, TypeError):
        return None


def share(
    paths: list[Path],
    make: Callable[[int], tuple[Publish, dict]],
    known: Callable[[int], dict | None] | None = None,
) -> list[dict]:
    """The notes of all parts, in order, on every rank; what is missing is made first, the ranks taking turns.

    make(number) -> (write, note) does the work of the part `paths[number]`; the note gets `sha256`, `rank` and
    `seconds`. known(number), asked on rank 0 alone, gives the note of a part that is there (left out: `read_note`).
    Every rank must call this, with the same paths. SIGTERM is seen between parts: Stopped loses none of them.
    """
    known = known or (lambda number: read_note(paths[number]))
    notes = ranks.on_rank_zero(lambda: [known(number) for number in range(len(paths))])
    missing = [number for number, note in enumerate(notes) if note is None]
    made = []
    for number in missing[runtime.rank() :: runtime.world_size()]:
        ranks.check_stop()
        started = time.perf_counter()
        write, note = make(number)
        spent = {"rank": runtime.rank(), "seconds": time.perf_counter() - started}
        made.append((number, publish(paths[number], write, note | spent)))
    for number, note in [item for of_rank in ranks.gather(made) for item in of_rank]:
        notes[number] = note
    return notes


def seconds(notes: list[dict]) -> float:
    """How long the parts took: ranks work side by side, so the slowest one's time counts."""
    spent: dict[int, float] = {}
    for note in notes:
        spent[note.get("rank", 0)] = spent.get(note.get("rank", 0), 0.0) + note.get("seconds", 0.0)
    return max(spent.values(), default=0.0)


def lines_of(paths: list[Path]) -> list[dict]:
    """The objects of the parts' lines, one part after the other."""
    return [line for path in paths for _, line in files.read_jsonl(path)]


def result(path: Path, plan: str) -> dict | None:
    """The metrics of the result `path` when it was published for this very plan and is intact, else None."""
    note = read_note(path)
    if note is None or note.get("plan") != plan:
        return None
    _tidy(path)
    return note["metrics"]


def publish_result(path: Path, write: Publish, plan: str, metrics: dict) -> dict:
    """Let `write` make `path` out of the parts, which then go; returns `metrics`. For rank 0 alone."""
    publish(path, write, {"plan": plan, "metrics": metrics})
    _tidy(path)
    return metrics


def _tidy(path: Path) -> None:
    """Drop the parts of a published result, and what killed writers of it left."""
    shutil.rmtree(path.parent / FOLDER, ignore_errors=True)
    for written in (path, note_path(path)):
        for left in path.parent.glob(f".{written.name}.*.tmp"):
            left.unlink(missing_ok=True)
