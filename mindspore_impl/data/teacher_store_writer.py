"""Writing a teacher store: rows, shards and the manifest. A kill loses no complete shard.

The format is described in `teacher_store.py`. Legend: S supervised targets of a sequence, K teacher ids, M runs.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mindspore_impl.data import teacher_store
from mindspore_impl.data.teacher_store import MANIFEST, StoreHeader, check_same_header, sample_key, target_runs
from mindspore_impl.distributed import resumable
from mindspore_impl.errors import UserError
from mindspore_impl.files import atomic_write, inside, sha256_file, write_json
from mindspore_impl.ops.log_floor import LOG_FLOOR


@dataclass(frozen=True)
class Row:
    """One sequence as it is stored."""

    key: str
    runs: np.ndarray  # uint32 [M, 2]
    ids_SK: np.ndarray  # int32; -1 is padding
    logp_SK: np.ndarray  # float16
    tail_logp_S: np.ndarray  # float16


def make_row(header: StoreHeader, ids: np.ndarray, supervised: np.ndarray, rows: tuple[np.ndarray, ...]) -> Row:
    """The teacher rows of a whole sequence, ids int[L] and supervised bool[L], in the stored types.

    rows: ids int [S, K] (row r predicts the r-th supervised token; -1 pads K), their log-probabilities, the log-mass
    of all other ids [S]. Raises UserError when a row is not a distribution, or the number of rows is wrong.
    """
    teacher_ids_SK, teacher_logp_SK, tail_logp_S = rows
    key, runs = sample_key(ids), target_runs(supervised)
    where = f"sequence {key[:16]} of {len(ids)} tokens"
    targets = int(runs[:, 1].sum())
    if not targets or targets != len(tail_logp_S) or len(ids) != len(supervised):
        found = f"{len(tail_logp_S)} teacher rows for {targets} targets"
        raise UserError(f"{where}: {found} in a mask of {len(supervised)}")
    teacher_store.check_rows(header, teacher_ids_SK, teacher_logp_SK, tail_logp_S, where)
    logp_SK = np.where(teacher_ids_SK < 0, LOG_FLOOR, teacher_logp_SK)
    return Row(key, runs, teacher_ids_SK.astype(np.int32), _to_half(logp_SK), _to_half(tail_logp_S))


def _to_half(logp: np.ndarray) -> np.ndarray:
    return np.clip(logp, LOG_FLOOR, 0).astype(np.float16)


def shard_path(folder: str | Path, number: int) -> Path:
    """The path of shard `number` of a store."""
    return Path(folder) / f"shard-{number:05d}.safetensors"


def write_shard(path: Path, rows: list[Row]) -> None:
    """Write one shard, atomically. Raises UserError when the disk is full."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    low_PK, high = teacher_store.pack_ids(np.concatenate([row.ids_SK for row in rows]))
    tensors = {
        "ids_low": low_PK,
        "ids_high": high,
        "logp": np.concatenate([row.logp_SK for row in rows]),
        "tail_logp": np.concatenate([row.tail_logp_S for row in rows]),
        "keys": np.frombuffer(bytes.fromhex("".join(row.key for row in rows)), np.uint8).reshape(-1, 32),
        "run_counts": np.array([len(row.runs) for row in rows], np.uint32),
        "runs": np.concatenate([row.runs for row in rows]),
    }
    try:
        atomic_write(path, lambda temporary: save_file(tensors, str(temporary)))
    except SafetensorError as error:  # how it reports a full disk
        raise UserError(f"{path}: cannot be written ({error}); free some room and run again") from error


def shard_record(header: StoreHeader, path: Path, rows: list[Row]) -> dict:
    """The record of a shard (see `distributed/resumable.py`), which describes it until a manifest lists it."""
    counts = {"sequences": len(rows), "positions": sum(len(row.tail_logp_S) for row in rows)}
    return _listing(header, file=path.name, **counts)


def _listing(header: StoreHeader, **content) -> dict:
    """The JSON object of a manifest, or of the record of an unpublished shard."""
    return {"schema": teacher_store.SCHEMA, "header": asdict(header), **content}


def existing_shards(folder: str | Path, header: StoreHeader) -> dict[str, dict]:
    """The intact shards of a store that may be unfinished, from its manifest and the shards' records: {file: entry}.

    A listed shard that is missing or damaged is reported on stderr and left out. Raises UserError when the store was
    started with another header.
    """
    folder, found = Path(folder), {}
    teacher_store.check_header(header, f"teacher store {folder}")
    if (manifest := folder / MANIFEST).exists():
        known, shards = teacher_store.read_manifest(folder)
        check_same_header(known, header, manifest)
        for entry in shards:
            path = inside(folder, entry["file"])
            if path.exists() and sha256_file(path) == entry["sha256"]:
                found[path.name] = entry
            else:
                state = "damaged" if path.exists() else "missing"
                print(f"{path}: {state}; its sequences will be captured again", file=sys.stderr)
    for path in sorted(folder.glob("shard-*.safetensors")):
        if (record := resumable.read_record(path)) is not None:
            known, (entry,) = teacher_store.parse_listing(record | {"shards": [record]}, path.with_suffix(".json"))
            check_same_header(known, header, path.with_suffix(".json"))
            found[path.name] = entry
    return found


class StoreWriter:
    """Writes a store sequence by sequence in one process; `close` publishes it.

    Reopening an unfinished folder continues after its last complete shard. Raises UserError as `existing_shards` does.
    """

    def __init__(self, folder: str | Path, header: StoreHeader, positions_per_shard: int = 65536):
        self.folder, self.header, self.positions_per_shard = Path(folder), header, positions_per_shard
        self._entries = existing_shards(folder, header)
        self._known: dict[str, bytes] = {}  # key: its runs, to refuse the same ids under another mask
        for entry in self._entries.values():
            runs_of = teacher_store.read_index(self.folder / entry["file"], entry)
            self._known |= {key.hex(): runs.tobytes() for key, runs in runs_of.items()}
        self._buffer: list[Row] = []
        self._buffered = 0
        numbers = [int(number) for name in self._entries for number in re.findall(r"^shard-(\d+)", name)]
        self._next = 1 + max(numbers, default=-1)

    def has(self, key: str, runs: np.ndarray | None = None) -> bool:
        """Whether the sequence with this `sample_key` is stored or buffered for the next shard.

        runs: its `target_runs`. Raises UserError when the sequence is known with another supervised mask.
        """
        if runs is not None and self._known.get(key, runs.tobytes()) != runs.tobytes():
            raise UserError(f"sequence {key[:16]}: stored with another mask in {self.folder}; delete the store first")
        return key in self._known

    def add(self, ids: np.ndarray, supervised: np.ndarray, *teacher_rows: np.ndarray) -> bool:
        """Store the rows of one sequence, as `make_row` takes them; False when they are stored already.

        Raises UserError as `make_row` and `has` do.
        """
        if self.has(sample_key(ids), target_runs(supervised)):
            return False
        row = make_row(self.header, ids, supervised, teacher_rows)
        self._known[row.key] = row.runs.tobytes()
        self._buffer.append(row)
        self._buffered += len(row.tail_logp_S)
        if self._buffered >= self.positions_per_shard:
            self._flush()
        return True

    def close(self) -> None:
        """Write what is buffered and publish the manifest."""
        self._flush()
        publish(self.folder, self.header, self._entries.values())

    def _flush(self) -> None:
        if not self._buffer:
            return
        path, rows = shard_path(self.folder, self._next), self._buffer
        record = shard_record(self.header, path, rows)
        self._entries[path.name] = resumable.publish(path, lambda path: write_shard(path, rows), record)
        self._next, self._buffer, self._buffered = self._next + 1, [], 0


def publish(folder: str | Path, header: StoreHeader, entries: Iterable[dict]) -> None:
    """Write `manifest.json` with these shards; then delete records, unlisted shards and temporary files.

    For one process, while nobody else writes to the store.
    """
    folder = Path(folder)
    keys = ("file", "sha256", "sequences", "positions")
    shards = [{key: entry[key] for key in keys} for entry in sorted(entries, key=lambda entry: entry["file"])]
    counts = {name: sum(entry[name] for entry in shards) for name in ("sequences", "positions")}
    write_json(folder / MANIFEST, _listing(header, counts=counts, shards=shards))
    listed = {entry["file"] for entry in shards}
    for path in folder.iterdir():
        stray = path.name.startswith("shard-") and path.name not in listed
        if stray or re.fullmatch(r"\.(shard|manifest)[-.].*\.tmp", path.name):
            path.unlink()
