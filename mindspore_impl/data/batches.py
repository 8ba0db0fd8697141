"""Batches of samples: drawn per epoch, ordered, packed, sharded over ranks and prefetched.

Everything is a pure function of (samples, options, seed, step): a run resumed at step s sees the batches of an
uninterrupted run, and the global order of rows does not depend on the number of ranks. Legend: B rows of a
micro-batch, R rows of one step on one rank, L positions, K teacher ids, S supervised targets of a sample.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, count, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from mindspore_impl.data import difficulty
from mindspore_impl.data.options import BatchOptions
from mindspore_impl.data.packing import FilledRows, Pieces, cut, fill, fitting, pack_lengths
from mindspore_impl.data.teacher_store import StoreReader
from mindspore_impl.errors import UserError
from mindspore_impl.ops.log_floor import LOG_FLOOR
from mindspore_impl.schema import check_ranges, nearest

if TYPE_CHECKING:
    from mindspore_impl.text.chat import Sample

# With an order, samples are shuffled in stretches: shorter ones follow the order closely, longer ones pack better.
ORDERED_STEPS = 4  # at most this many steps
ORDERED_PARTS = 16  # and at most 1 / 16 of an epoch, but at least one row


@dataclass
class PackedBatch:
    """One micro-batch. Position t predicts `target_ids[t]`; where nothing is supervised, target and weight are 0.

    Padding has segment 0; positions restart in every segment. The teacher arrays hold, at each supervised position,
    the teacher's distribution for that target; elsewhere the ids are -1 and the tail has all the mass. All are finite.
    """

    input_ids_BL: np.ndarray  # int32
    target_ids_BL: np.ndarray  # int32, shifted already
    segment_ids_BL: np.ndarray  # int32
    position_ids_BL: np.ndarray  # int32
    loss_weight_BL: np.ndarray  # float32; 1 / supervised tokens of the whole global batch, so that a loss is a sum
    teacher_ids_BLK: np.ndarray | None = None  # int32; -1 is padding
    teacher_logp_BLK: np.ndarray | None = None  # float32
    teacher_tail_logp_BL: np.ndarray | None = None  # float32

    @property
    def tokens(self) -> int:
        """Positions that are not padding."""
        return int(np.count_nonzero(self.segment_ids_BL))

    @property
    def supervised(self) -> int:
        """Positions whose target has weight."""
        return int(np.count_nonzero(self.loss_weight_BL))


class BatchStream:
    """An endless stream of training steps over several sets of samples.

    `options.mixture` gives the share of samples drawn from each set (empty: each set by its size). An epoch draws as
    many samples as these sets hold together; a set is read in shuffled passes without replacement that continue from
    epoch to epoch, so a single set is passed once an epoch. Rows of successive epochs are concatenated: a step may hold
    the end of one and the beginning of the next, and no sample is lost.

    With an `options.order` other than shuffled, the samples of an epoch are sorted by difficulty (ties shuffled) and
    cut into stretches (ORDERED_STEPS, ORDERED_PARTS), each packed and shuffled on its own.

    Args:
        sets: Samples by set name.
        options: Mixture, packing, order and batch size.
        seed: Determines every shuffle.
        rank: This process.
        world_size: Number of processes that share each step.
        teacher: An open store with every sample that `options.overlong` leaves, or None.
        key: Where the options stand in the configuration, for messages.

    Raises UserError naming the key or record.
    """

    def __init__(
        self,
        sets: "dict[str, list[Sample]]",
        options: BatchOptions,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        teacher: StoreReader | None = None,
        key: str = "data",
    ):
        self.options, self.seed, self.rank, self.teacher = options, seed, rank, teacher
        check_ranges(options, key)
        parts = world_size * options.gradient_accumulation_steps
        if options.rows % parts:
            share = f"{world_size} ranks x {key}.gradient_accumulation_steps={options.gradient_accumulation_steps}"
            raise UserError(f"{key}.rows={options.rows} does not fit {share}; choose a multiple of {parts}")
        self._micro_rows = options.rows // parts
        self._sizes, self._quotas = _quotas(sets, options.mixture, key)
        self._samples = [sample for name in self._sizes for sample in sets[name]]
        self._pieces = cut(self._samples, options.sequence_length, options.overlong, key)
        bounds = np.searchsorted(self._pieces.sample_P, np.arange(len(self._samples) + 1))
        self._pieces_of = [np.arange(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        self._first = dict(zip(self._sizes, accumulate([0, *self._sizes.values()]), strict=False))  # sample of each set
        for name, first in self._first.items():
            if bounds[first] == bounds[first + self._sizes[name]]:
                setting = f"{key}.overlong={options.overlong} at {key}.sequence_length={options.sequence_length}"
                raise UserError(f"data.sets.{name}: {setting} leaves nothing of it; raise the length")
        if teacher is not None:
            for index in np.unique(self._pieces.sample_P):  # a dropped sample needs no teacher rows
                sample = self._samples[index]
                with _naming(sample, f"{key}: "):
                    teacher.check(sample.ids, sample.supervised)
        self._hardness_S = self._read_hardness(key)
        self._lock = threading.RLock()  # guards the two caches below, which the prefetch thread fills too
        self._epochs: dict[int, list[list[int]]] = {}  # rows of the first epoch and of recent ones
        self._first_row = [0]  # of each epoch counted so far

    def steps(self, start: int, stop: int) -> Iterator[list[PackedBatch]]:
        """Steps start..stop: this rank's micro-batches of each, prepared `options.prefetch` steps ahead."""
        if self.options.prefetch == 0:
            yield from map(self.step, range(start, stop))
            return
        with ThreadPoolExecutor(1, "prefetch") as pool:
            waiting, steps = deque(), iter(range(start, stop))
            try:
                while True:
                    ahead = islice(steps, 1 + self.options.prefetch - len(waiting))
                    waiting.extend(pool.submit(self.step, step) for step in ahead)
                    if not waiting:
                        return
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def step(self, step: int) -> list[PackedBatch]:
        """The micro-batches of one step, made in this thread."""
        arrays, size = self.rank_arrays(step), self._micro_rows
        starts = range(0, size * self.options.gradient_accumulation_steps, size)
        return [PackedBatch(*(array[first : first + size] for array in arrays)) for first in starts]

    def steps_for_epochs(self, epochs: float) -> int:
        """Steps until the last row of `epochs` epochs has been seen (the last step is filled from the next one)."""
        rows, part = self._epoch_start(int(epochs)), epochs % 1
        if part:
            rows += part * (self._epoch_start(int(epochs) + 1) - rows)
        return int(np.ceil(rows / self.options.rows))

    def epochs_at(self, step: int) -> float:
        """Epochs that the first `step` steps make: their rows over the rows of an epoch."""
        rows = step * self.options.rows
        epoch = self._epoch_of(rows)
        first = self._epoch_start(epoch)
        return epoch + (rows - first) / (self._epoch_start(epoch + 1) - first)

    def tokens(self, step: int) -> int:
        """Positions of one step that are not padding, of all ranks and micro-batches."""
        rows = self._global_rows(step * self.options.rows, (step + 1) * self.options.rows)
        return int(self._pieces.length_P[[piece for row in rows for piece in row]].sum())

    def summary(self) -> dict[str, Any]:
        """Numbers of the first epoch: samples drawn (also by set), tokens, supervised targets, efficiency, rows.

        `dropped` counts samples (overlong=drop) or pieces without a target (overlong=split) of all sets. With an order,
        "order" has the means of its number over up to ten equal parts of the epoch.
        """
        rows, length_P = self._rows(0), self._pieces.length_P
        placed = [piece for row in rows for piece in row]
        tokens = int(length_P[placed].sum())
        ordered = {} if self._hardness_S is None else {"order": self._order_summary(placed)}
        return ordered | {
            "samples": sum(self._quotas.values()),
            "sets": dict(self._quotas),
            "tokens": tokens,
            "supervised": sum(self._targets(piece) for piece in placed),
            "dropped": self._pieces.dropped_samples + self._pieces.dropped_pieces,
            "efficiency": tokens / (len(rows) * self.options.sequence_length) if rows else 0.0,
            "rows_per_epoch": len(rows),
        }

    def rank_arrays(self, step: int) -> list[np.ndarray]:
        """The arrays of one step in the order of PackedBatch's fields, all of this rank's micro-batches in axis 0."""
        rows = self._global_rows(step * self.options.rows, (step + 1) * self.options.rows)
        supervised = sum(self._targets(piece) for row in rows for piece in row)  # of all ranks and micro-batches
        share = self._micro_rows * self.options.gradient_accumulation_steps
        mine = rows[self.rank * share : (self.rank + 1) * share]
        filled = fill(mine, self._pieces, self._samples, self.options.sequence_length)
        weight = 1.0 / supervised if supervised else 0.0
        return _arrays(filled, self._pieces, self._samples, weight, self.teacher)

    def _targets(self, piece: int) -> int:
        sample = self._samples[self._pieces.sample_P[piece]]
        return int(np.count_nonzero(sample.supervised[self._pieces.start_P[piece] + 1 : self._pieces.stop_P[piece]]))

    def _global_rows(self, first: int, last: int) -> list[list[int]]:
        rows: list[list[int]] = []
        epoch = self._epoch_of(first)
        while len(rows) < last - first:
            start = self._epoch_start(epoch)
            rows += self._rows(epoch)[max(first - start, 0) : last - start]
            epoch += 1
        return rows

    def _epoch_of(self, row: int) -> int:
        return next(epoch for epoch in count() if self._epoch_start(epoch + 1) > row)

    def _epoch_start(self, epoch: int) -> int:
        """Number of the first row of an epoch. Where every quota is whole passes, all epochs have equally many rows."""
        # Not with an order: equally hard samples change places, and with them the cuts between stretches.
        if self._hardness_S is None and all(quota % self._sizes[name] == 0 for name, quota in self._quotas.items()):
            return epoch * len(self._rows(0)) if epoch else 0
        with self._lock:
            while len(self._first_row) <= epoch:
                self._first_row.append(self._first_row[-1] + len(self._rows(len(self._first_row) - 1)))
            return self._first_row[epoch]

    def _rows(self, epoch: int) -> list[list[int]]:
        """Rows of one epoch as lists of pieces: drawn, (sorted,) packed first-fit-decreasing, then shuffled."""
        with self._lock:
            if epoch not in self._epochs:
                self._epochs = {key: rows for key, rows in self._epochs.items() if not key or abs(key - epoch) <= 1}
                self._epochs[epoch] = self._make_rows(epoch)
            return self._epochs[epoch]

    def _make_rows(self, epoch: int) -> list[list[int]]:
        drawn = [self._pieces_of[first + i] for name, first in self._first.items() for i in self._draw(name, epoch)]
        generator = _generator(self.seed, "rows", epoch)
        rows: list[list[int]] = []
        for pieces in self._stretches(np.concatenate(drawn), epoch):
            packed = pack_lengths(self._pieces.length_P[pieces], self.options.sequence_length)
            rows += [pieces[packed[r]].tolist() for r in generator.permutation(len(packed))]
        return rows

    def _stretches(self, pieces: np.ndarray, epoch: int) -> list[np.ndarray]:
        """An epoch's pieces in the parts that are packed and shuffled on their own: one, or several in order."""
        if self._hardness_S is None:
            return [pieces]
        pieces = pieces[_generator(self.seed, "equally hard", epoch).permutation(len(pieces))]
        hardness_P = self._hardness_S[self._pieces.sample_P[pieces]]
        turned_P = hardness_P if self.options.order == "easy_to_hard" else -hardness_P
        pieces = pieces[np.argsort(turned_P, kind="stable")]
        tokens_P, length = np.cumsum(self._pieces.length_P[pieces]), self.options.sequence_length
        room = max(length, min(ORDERED_STEPS * self.options.rows * length, int(tokens_P[-1]) // ORDERED_PARTS))
        stretch_P = (tokens_P - 1) // room
        return np.split(pieces, np.flatnonzero(np.diff(stretch_P)) + 1)

    def _read_hardness(self, key: str) -> np.ndarray | None:
        """Difficulty of each sample, float64 [S]; None without an order."""
        by, key = self.options.order_by, f"{key}.order={self.options.order}"
        if self.options.order == "shuffled":
            return None
        values = [difficulty.number_of(one.meta, by, f"{key}: record {one.record_id!r}") for one in self._samples]
        return difficulty.hardness(np.array(values), by)

    def _order_summary(self, placed: list[int]) -> dict[str, Any]:
        by = self.options.order_by
        values = difficulty.hardness(self._hardness_S, by)[self._pieces.sample_P[placed]]  # its own inverse
        parts = np.array_split(values, min(10, len(values)))
        return {"order": self.options.order, "by": by, "means": [float(part.mean()) for part in parts]}

    def _draw(self, name: str, epoch: int) -> np.ndarray:
        """Indices drawn from one set in one epoch: a window of the endless sequence of its shuffled passes."""
        size, quota = self._sizes[name], self._quotas[name]
        first = epoch * quota
        numbers = range(first // size, -(-(first + quota) // size))
        passes = [_generator(self.seed, "set " + name, number).permutation(size) for number in numbers]
        return np.concatenate(passes)[first % size :][:quota]


class SequentialBatches:
    """Every sample once, packed and unshuffled, as a sequence of batches made on access.

    Batch n is (PackedBatch, placements) of `rows` rows, the last one filled up with empty rows. placements holds, for
    each row, the (index of the sample, first column) of its documents.

    Args:
        samples: The samples, each found in one batch.
        sequence_length: Tokens of a row.
        rows: Rows of a batch.
        teacher: An open store of the samples, or None.
        loss_weight: Weight of every supervised position.
        key: Where `sequence_length` stands in the configuration, for messages.

    Raises UserError for a sample longer than a row.
    """

    def __init__(
        self,
        samples: "Sequence[Sample]",
        sequence_length: int,
        rows: int,
        teacher: StoreReader | None = None,
        loss_weight: float = 1.0,
        key: str = "sequence_length",
    ):
        self.samples, self.sequence_length, self.rows = samples, sequence_length, rows
        self.teacher, self.loss_weight = teacher, loss_weight
        self._pieces = cut(fitting(samples, sequence_length, "error", (key, "")), sequence_length, "error")
        self._packed = pack_lengths(self._pieces.length_P, sequence_length)

    def __len__(self) -> int:
        return -(-len(self._packed) // self.rows)

    def members(self, number: int) -> list[int]:
        """Indices of the samples of batch `number`, in the order of its placements."""
        rows = self._packed[number * self.rows : (number + 1) * self.rows]
        return [int(self._pieces.sample_P[piece]) for row in rows for piece in row]

    def __getitem__(self, number: int) -> tuple[PackedBatch, list[list[tuple[int, int]]]]:
        if not 0 <= number < len(self):
            raise IndexError(number)  # ends an iteration
        rows = self._packed[number * self.rows : (number + 1) * self.rows]
        rows += [[]] * (self.rows - len(rows))
        filled = fill(rows, self._pieces, self.samples, self.sequence_length)
        placements = [[(int(self._pieces.sample_P[p]), column) for p, column in row] for row in filled.placements]
        arrays = _arrays(filled, self._pieces, self.samples, self.loss_weight, self.teacher)
        return PackedBatch(*arrays), placements


def one_pass(samples: "Sequence[Sample]", sequence_length: int, rows: int, *rest, **more):
    """An iterator over the batches of a `SequentialBatches` with these arguments."""
    return iter(SequentialBatches(samples, sequence_length, rows, *rest, **more))


def _quotas(
    sets: "dict[str, list[Sample]]", mixture: dict[str, float], key: str
) -> tuple[dict[str, int], dict[str, int]]:
    """(size, samples drawn an epoch) of each set with a weight, in order of names; the draws add up to the sizes."""
    weights = dict(mixture) or {name: float(len(samples)) for name, samples in sets.items()}
    for name, weight in weights.items():
        if name not in sets:
            raise UserError(f"{key}.mixture.{name}: there is no such set{nearest(name, sets)}")
        if weight and not sets[name]:
            raise UserError(f"data.sets.{name}: the set is empty, nothing can be drawn from it")
    names = sorted(name for name, weight in weights.items() if weight)
    if not names:
        raise UserError(f"{key}.mixture: no set has a weight above 0, there is nothing to train on")
    sizes = {name: len(sets[name]) for name in names}
    total, weight_sum = sum(sizes.values()), sum(weights[name] for name in names)
    exact = {name: total * weights[name] / weight_sum for name in names}
    quotas = {name: int(exact[name]) for name in names}
    by_remainder = sorted(names, key=lambda name: (quotas[name] - exact[name], name))
    for name in by_remainder[: total - sum(quotas.values())]:
        quotas[name] += 1
    for name in names:
        if not quotas[name]:
            share = f"{key}.mixture.{name}={weights[name]:g}"
            raise UserError(f"{share}: less than one of the {total} samples of an epoch; raise it, or set it to 0")
    return sizes, quotas


def _generator(seed: int, purpose: str, number: int) -> np.random.Generator:
    tag = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, tag, number])))


@contextmanager
def _naming(sample: "Sample", where: str = "") -> Iterator[None]:
    """Prefix a UserError about the tokens of a sample with `where` and its record id."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}record {sample.record_id!r}: {error}") from error


def _arrays(
    filled: FilledRows, pieces: Pieces, samples: "Sequence[Sample]", weight: float, teacher: StoreReader | None
) -> list[np.ndarray]:
    """The arrays of PackedBatch in the order of its fields.

    Teacher ids, log-probabilities and tail stand at the position that predicts each supervised target.
    """
    arrays = [filled.input_ids_RL, filled.target_ids_RL, filled.segment_ids_RL, filled.position_ids_RL]
    arrays.append(np.where(filled.target_supervised_RL, weight, 0.0).astype(np.float32))
    if teacher is None:
        return arrays
    shape = filled.input_ids_RL.shape
    ids_RLK = np.full((*shape, teacher.top_k), -1, np.int32)
    logp_RLK = np.full((*shape, teacher.top_k), LOG_FLOOR, np.float32)
    tail_logp_RL = np.zeros(shape, np.float32)
    for r, placed in enumerate(filled.placements):
        for piece, column in placed:
            sample, start, stop = samples[pieces.sample_P[piece]], pieces.start_P[piece], pieces.stop_P[piece]
            with _naming(sample):
                ids_SK, logp_SK, tail_logp_S = teacher.lookup(sample.ids, sample.supervised)
            where = column + np.flatnonzero(filled.target_supervised_RL[r, column : column + stop - start])
            skip = np.count_nonzero(sample.supervised[1 : start + 1])  # targets of the pieces before this one
            part = slice(skip, skip + len(where))
            ids_RLK[r, where], logp_RLK[r, where] = ids_SK[part], logp_SK[part]
            tail_logp_RL[r, where] = tail_logp_S[part]
    return [*arrays, ids_RLK, logp_RLK, tail_logp_RL]
