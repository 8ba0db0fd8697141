"""The teacher store: a teacher's distribution at every supervised position, on disk.

A store is a folder: `manifest.json` and safetensors shards. One entry is one whole token sequence, keyed by the
SHA-256 of its ids; equal sequences are stored once. Row r of an entry predicts its r-th supervised token: it was read
at the position before that token, and holds K ids of 18 bits, K float16 log-probabilities and a float16 tail log-mass.
Legend: S supervised targets of a sequence, P positions and Q sequences of a shard, K teacher ids, M runs.

Tensors of a shard: `ids_low` uint16 [P, K] and `ids_high` uint8 (four two-bit values to a byte, over P*K in order),
`logp` float16 [P, K], `tail_logp` float16 [P], `keys` uint8 [Q, 32], `run_counts` uint32 [Q] and `runs` uint32 [M, 2],
the (first, length) of each run of supervised targets. `teacher_store_writer.py` writes them.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from mindspore_impl.errors import UserError
from mindspore_impl.files import inside, read_json, sha256_bytes, sha256_file
from mindspore_impl.ops.log_floor import LOG_FLOOR
from mindspore_impl.text.tokenizer import check_tokenizer

SCHEMA = 1
PAD_ON_DISK = 2**18 - 1  # -1 in memory
# Share of ln V. Random weights have 1.00, a teacher of 16 steps 0.69 on the answers of a student of 32.
IGNORANT = 0.95
SUM_TOLERANCE = 1e-2  # of the K+1 masses; float16 alone costs up to 4e-3
MANIFEST = "manifest.json"
CAPTURE_AGAIN = "capture with this tokenizer, or name the store's own in tokenizer.path"


@dataclass(frozen=True)
class StoreHeader:
    """The settings that all rows of a store share."""

    teacher_sha256: str
    tokenizer_sha256: str
    vocab_size: int
    top_k: int  # ids per position; in mode "sampled" the number of draws
    temperature: float  # the logits were divided by it before the softmax
    mode: str  # "top_k": the K most probable; "sampled": drawn with replacement, log-probability log(count / K)


def sample_key(ids: np.ndarray) -> str:
    """Hexadecimal SHA-256 of the token ids as little-endian int32, before any packing or splitting."""
    return sha256_bytes(np.asarray(ids).astype("<i4").tobytes())


def target_runs(supervised: np.ndarray) -> np.ndarray:
    """Runs of supervised targets, uint32 [M, 2] of (first, length). Token 0 is never a target: nothing precedes it."""
    mask_L2 = np.zeros(len(supervised) + 2, np.int8)
    mask_L2[2:-1] = supervised[1:]
    edges = np.flatnonzero(np.diff(mask_L2))
    return np.stack([edges[::2], edges[1::2] - edges[::2]], axis=1).astype(np.uint32)


def bytes_of_position(top_k: int) -> float:
    """Bytes of one teacher row: ids of 18 bits, log-probabilities and the tail of 16."""
    return top_k * (18 / 8 + 2) + 2


def check_header(header: StoreHeader, where: str) -> None:
    """Raise UserError when a value of `header` cannot be stored."""
    if header.mode not in ("top_k", "sampled"):
        raise UserError(f"{where}: mode is {header.mode!r}; it must be top_k or sampled")
    if not 0 < header.vocab_size < PAD_ON_DISK:
        raise UserError(f"{where}: vocab_size is {header.vocab_size}; ids of 18 bits hold 1..{PAD_ON_DISK - 1}")
    if header.top_k < 1 or not 0 < header.temperature < float("inf"):
        raise UserError(f"{where}: top_k is {header.top_k} and temperature {header.temperature}; both must be positive")


def check_rows(
    header: StoreHeader, teacher_ids_SK: np.ndarray, teacher_logp_SK: np.ndarray, tail_logp_S: np.ndarray, where: str
) -> None:
    """Raise UserError, naming `where`, unless each row is a distribution over distinct ids and a tail.

    Padding is -1 and comes last. With mode top_k the ids are in order of falling probability. All masses sum to 1.

    Args:
        header: that of the store.
        teacher_ids_SK: ids.
        teacher_logp_SK: their log-probabilities.
        tail_logp_S: log-mass of all other ids.
        where: what messages call the rows.
    """
    shapes = [array.shape for array in (teacher_ids_SK, teacher_logp_SK, tail_logp_S)]
    if shapes != [(len(tail_logp_S), header.top_k)] * 2 + [(len(tail_logp_S),)]:
        raise UserError(f"{where}: ids, log-probabilities and tail of shapes {shapes} do not fit top_k={header.top_k}")
    for bad_S, fault in row_faults(header, teacher_ids_SK, teacher_logp_SK, tail_logp_S):
        if bad_S.any():
            raise UserError(f"{where}: teacher row {int(np.argmax(bad_S))}: {fault}; capture it again")


def row_faults(
    header: StoreHeader, teacher_ids_SK: np.ndarray, teacher_logp_SK: np.ndarray, tail_logp_S: np.ndarray
) -> Iterator[tuple[np.ndarray, str]]:
    """Yield (bool[S]: the rows that have it, fault) for everything that can be wrong with a row; see `check_rows`."""
    real_SK = teacher_ids_SK >= 0
    outside_SK = (teacher_ids_SK < -1) | (teacher_ids_SK >= header.vocab_size)
    yield outside_SK.any(1), f"an id is outside the vocabulary of {header.vocab_size}"
    yield (real_SK[:, 1:] & ~real_SK[:, :-1]).any(1), "an id follows padding"
    sorted_SK = np.sort(teacher_ids_SK, axis=1)
    yield ((np.diff(sorted_SK, axis=1) == 0) & (sorted_SK[:, 1:] >= 0)).any(1), "an id occurs twice"
    logp_SK = np.where(real_SK, teacher_logp_SK, LOG_FLOOR).astype(np.float64)
    yield ~np.isfinite(logp_SK).all(1) | ~np.isfinite(tail_logp_S), "a log-probability is not finite"
    yield (logp_SK > 1e-4).any(1) | (tail_logp_S > 1e-4), "a log-probability is above 0"
    if header.mode == "top_k":
        yield (logp_SK[:, 1:] > logp_SK[:, :-1]).any(1), "the ids are not in order of falling probability"
    total_S = np.exp(np.minimum(logp_SK, 1)).sum(1) + np.exp(np.minimum(tail_logp_S.astype(np.float64), 1))
    yield np.abs(total_S - 1) > SUM_TOLERANCE, "its masses, the tail included, do not sum to 1"


def pack_ids(teacher_ids_PK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of at most 18 bits (-1 is padding) as (low uint16 [P, K], high uint8 [ceil(P*K / 4)])."""
    disk_PK = np.where(teacher_ids_PK < 0, PAD_ON_DISK, teacher_ids_PK).astype(np.uint32)
    high = (disk_PK >> 16).astype(np.uint8).ravel()
    quads = np.pad(high, (0, -len(high) % 4)).reshape(-1, 4)
    return (disk_PK & 0xFFFF).astype(np.uint16), np.bitwise_or.reduce(quads << np.array([0, 2, 4, 6], np.uint8), axis=1)


def unpack_ids(low_PK: np.ndarray, high: np.ndarray, skip: int) -> np.ndarray:
    """Inverse of `pack_ids`, int32 [P, K]; the first `skip` two-bit values of `high` belong to earlier positions."""
    values = (high[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    high_PK = values.ravel()[skip : skip + low_PK.size].reshape(low_PK.shape)
    ids_PK = low_PK.astype(np.int32) | high_PK.astype(np.int32) << 16
    ids_PK[ids_PK == PAD_ON_DISK] = -1
    return ids_PK


def renormalise(logp_SK: np.ndarray, tail_logp_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale the K+1 masses of each row to sum 1, in float32: 16-bit rounding alone could make a divergence negative."""
    total_S = np.log(np.exp(logp_SK).sum(1) + np.exp(tail_logp_S))
    logp_SK = np.where(logp_SK <= LOG_FLOOR, np.float32(LOG_FLOOR), logp_SK - total_S[:, None])
    tail_logp_S = np.where(tail_logp_S <= LOG_FLOOR, np.float32(LOG_FLOOR), tail_logp_S - total_S)
    return np.minimum(logp_SK, 0), np.minimum(tail_logp_S, 0)


def parse_listing(content: dict, path: Path) -> tuple[StoreHeader, list[dict]]:
    """Header and shard entries of a manifest that was read from `path`. Raises UserError when it is malformed."""
    try:
        schema, values, shards = content["schema"], content["header"], content["shards"]
        if schema != SCHEMA:
            raise UserError(f"{path}: schema {schema!r} is not {SCHEMA}, the one this version reads; capture again")
        types = {field.name: field.type for field in fields(StoreHeader)}
        header = StoreHeader(**{name: types[name](value) for name, value in values.items()})
        for entry in shards:
            inside(path.parent, entry["file"])
            if not (isinstance(entry["sha256"], str) and entry["sequences"] > 0 and entry["positions"] > 0):
                raise ValueError("bad shard entry")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the manifest of a teacher store ({error!r}); capture again") from error
    check_header(header, str(path))
    return header, shards


def read_manifest(folder: str | Path) -> tuple[StoreHeader, list[dict]]:
    """Header and shard entries of a published store. Raises UserError when its manifest is missing or malformed."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise UserError(f"{path}: no such file, so there is no finished teacher store; run its capture stage first")
    content = read_json(path)
    header, shards = parse_listing(content, path)
    counts = content.get("counts")
    if not isinstance(counts, dict) or counts.get("positions") != sum(entry["positions"] for entry in shards):
        raise UserError(f"{path}: its counts do not agree with its shards; it is damaged, capture again")
    return header, shards


def read_header(folder: str | Path) -> StoreHeader:
    """The header of a published store. Raises UserError as `read_manifest` does."""
    return read_manifest(folder)[0]


def check_same_header(found: StoreHeader, header: StoreHeader, path: Path) -> None:
    """Raise UserError when the store at `path`, whose header is `found`, cannot take rows of `header`."""
    for name, new in asdict(header).items():
        if (old := getattr(found, name)) != new:
            raise UserError(f"{path}: was started with {name}={old} and now it is {new}; delete it, or name another")


def check_shard(folder: Path, entry: dict) -> Path:
    """The path of a listed shard after a check of its hash. Raises UserError when it was changed or is missing."""
    path = inside(folder, entry["file"])
    if sha256_file(path) != entry["sha256"]:
        raise UserError(f"{path}: its SHA-256 is not that in the manifest; delete the file and run the capture again")
    return path


def read_index(path: Path, entry: dict) -> dict[bytes, np.ndarray]:
    """The sequences of a shard in order, as key: runs [M, 2]. Raises UserError when they do not fit the manifest."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "np") as shard:
            keys, counts, runs = (shard.get_tensor(name) for name in ("keys", "run_counts", "runs"))
            positions = shard.get_slice("tail_logp").get_shape()[0]
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a shard of a teacher store ({error}); capture again") from error
    blob = keys.tobytes()
    parts = np.split(runs, np.cumsum(counts)[:-1])
    found = {blob[32 * q : 32 * q + 32]: part for q, part in enumerate(parts)}
    if not len(found) == len(keys) == entry["sequences"] or not positions == entry["positions"] == runs[:, 1].sum():
        raise UserError(f"{path}: holds other counts than the manifest lists; capture again")
    return found


class StoreReader:
    """A published store. Every shard's SHA-256 is checked at opening; teacher rows are mapped on first access.

    `hashed=False` skips the hashes, for callers that read a few rows and pass them to `check_rows`.

    Attributes: header, top_k, sequences, positions, bytes (all files of the folder). Raises UserError when the
    manifest is missing or damaged, a shard was changed, or `tokenizer_sha256` is not that of the store.
    """

    def __init__(self, folder: str | Path, tokenizer_sha256: str | None = None, hashed: bool = True):
        self.folder = Path(folder)
        self.header, self.shards = read_manifest(self.folder)
        self.top_k = self.header.top_k
        if tokenizer_sha256 is not None:
            check_tokenizer(self.header.tokenizer_sha256, tokenizer_sha256, self.folder / MANIFEST, CAPTURE_AGAIN)
        self._entries: dict[bytes, tuple[int, int, np.ndarray]] = {}  # key: shard, first position there, runs
        for number, entry in enumerate(self.shards):
            first = 0
            shard = check_shard(self.folder, entry) if hashed else inside(self.folder, entry["file"])
            for key, runs in read_index(shard, entry).items():
                self._entries.setdefault(key, (number, first, runs))  # an older store may hold one twice
                first += int(runs[:, 1].sum())
        self.sequences = len(self._entries)
        self.positions = sum(entry["positions"] for entry in self.shards)
        self.bytes = sum(file.stat().st_size for file in self.folder.iterdir() if file.is_file())
        self._open: dict[int, object] = {}

    def lookup(self, ids: np.ndarray, supervised: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The teacher rows of a whole sequence: ids int[L] and supervised bool[L] before packing or splitting.

        Returns (teacher_ids_SK int32, -1 is padding; teacher_logp_SK float32; tail_logp_S float32), row r for the r-th
        supervised token, K+1 masses of sum 1, all finite. Raises UserError when the sequence or its mask is not stored.
        """
        number, first, runs = self.check(ids, supervised)
        ids_SK, logp_SK, tail_logp_S = self.rows(number, first, int(runs[:, 1].sum()))
        return ids_SK, *renormalise(logp_SK, tail_logp_S)

    def check(self, ids: np.ndarray, supervised: np.ndarray) -> tuple[int, int, np.ndarray]:
        """Shard, first position there and runs of a sequence. Raises UserError unless captured with this mask."""
        key = sample_key(ids)
        found, where = self._entries.get(bytes.fromhex(key)), f"sequence {key[:16]} of {len(ids)} tokens"
        if found is None:
            raise UserError(f"{where} is not in the teacher store {self.folder}; run the capture on these samples")
        if not np.array_equal(found[2], target_runs(supervised)):
            raise UserError(f"{where} has other supervised positions in the teacher store {self.folder}; capture again")
        return found

    def rows(self, number: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`rows_of` a shard by its number."""
        if number not in self._open:
            from safetensors import SafetensorError, safe_open

            path = self.folder / self.shards[number]["file"]
            try:
                self._open[number] = safe_open(str(path), "np")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: changed since the store was opened; run the capture again") from error
        return rows_of(self._open[number], self.top_k, first, count)


def rows_of(shard, K: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows first..first+count of an open shard as stored: ids int32, log-probabilities and tail float32."""
    last = first + count
    high = shard.get_slice("ids_high")[first * K // 4 : -(-last * K // 4)]
    ids_PK = unpack_ids(shard.get_slice("ids_low")[first:last], high, first * K % 4)
    logp_PK = shard.get_slice("logp")[first:last].astype(np.float32)
    return ids_PK, logp_PK, shard.get_slice("tail_logp")[first:last].astype(np.float32)


def own_cross_entropy(reader: StoreReader, samples: Iterable) -> float:
    """A teacher's cross-entropy in nats on stored samples (text.chat.Sample), at the temperature of the store.

    A target outside the K ids gets an even share of the tail: for a teacher without knowledge that is what it is, one
    with knowledge is judged too hard. Drawn ids (mode sampled) leave no tail: there it is -log of the mean probability,
    a lower bound. Random weights have ln V in both. 0 without a target. Raises UserError when a sample is not stored.
    """
    found, rest = [], math.log(max(reader.header.vocab_size - reader.top_k, 1))
    for sample in samples:
        ids_SK, logp_SK, tail_logp_S = reader.lookup(sample.ids, sample.supervised)
        hit_SK = ids_SK == sample.ids[1:][sample.supervised[1:]][:, None]
        found.append(np.where(hit_SK.any(1), (logp_SK * hit_SK).sum(1), tail_logp_S - rest))
    logp_S = np.concatenate([*found, np.zeros(0)])
    if not len(logp_S):
        return 0.0
    return float(-logp_S.mean() if reader.header.mode == "top_k" else -np.log(max(np.exp(logp_S).mean(), 1e-300)))


def refuse_ignorance(cross_entropy: float, vocab_size: int, where: str) -> None:
    """Raise UserError for the `own_cross_entropy` of a teacher that knows nothing of what it scored."""
    chance = math.log(vocab_size)
    if cross_entropy >= IGNORANT * chance:
        fault = f"the teacher's own cross-entropy on its sequences is {cross_entropy:.2f} nats, and guessing costs"
        remedy = "check that its weights are trained and belong to this tokenizer, and capture again"
        raise UserError(f"{where}: {fault} {chance:.2f}; it knows nothing of them: {remedy}")


def shards_present(folder: str | Path) -> bool:
    """Whether every shard listed in a published manifest exists (not whether it is intact)."""
    shards = read_json(Path(folder) / MANIFEST).get("shards", [])
    return all(inside(folder, shard["file"]).is_file() for shard in shards)


def verify_store(folder: str | Path) -> dict:
    """Check a store without its teacher: hashes, counts, and that every row is a distribution over known ids.

    Returns counts, sizes in bytes (per position: all files of the folder) and the mean mass on the K ids. Raises
    UserError at the first fault.
    """
    reader, mass = StoreReader(folder), 0.0
    for number, entry in enumerate(reader.shards):
        rows = reader.rows(number, 0, entry["positions"])
        check_rows(reader.header, *rows, str(reader.folder / entry["file"]))
        mass += float(np.exp(rows[1].astype(np.float64)).sum())
    return {
        **asdict(reader.header),
        **{key: getattr(reader, key) for key in ("sequences", "positions", "bytes")},
        "shards": len(reader.shards),
        "duplicates": sum(entry["sequences"] for entry in reader.shards) - reader.sequences,
        "bytes_per_position": reader.bytes / max(reader.positions, 1),
        "teacher_mass": mass / max(reader.positions, 1),
    }
