"""Documents into rows of fixed length: cutting, first-fit-decreasing, the next-token shift and the filling of rows.

A document is a whole sample, or a piece of one that was too long. Its bounds are stored as segment numbers and never
inferred from an end-of-text token, which chat templates reuse. Legend: R rows, L positions in a row, P pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mindspore_impl.errors import UserError

if TYPE_CHECKING:
    from mindspore_impl.text.chat import Sample


def shift(ids: np.ndarray, supervised: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets of one document: position t predicts `ids[t + 1]` when that token is supervised.

    ids int[L], supervised bool[L] -> (target_ids int32[L], target_supervised bool[L]). A target is 0 where it is not
    supervised. The last position predicts nothing, and the first token is never a target. No other code shifts.
    """
    target_ids = np.zeros(len(ids), np.int32)
    target_supervised = np.zeros(len(ids), bool)
    target_supervised[:-1] = supervised[1:]
    target_ids[:-1] = np.where(target_supervised[:-1], ids[1:], 0)
    return target_ids, target_supervised


def pack_lengths(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """First-fit-decreasing: each length, longest first, goes into the first row with room; equals keep their order.

    Returns the indices into `lengths` row by row. A tree over the rows holds the largest free space below each node, so
    an item costs O(log rows). Raises ValueError for a length that is not in 1..capacity.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if not len(lengths):
        return []
    if lengths.min() < 1 or lengths.max() > capacity:
        raise ValueError(f"lengths must be in 1..{capacity}, found {lengths.min()}..{lengths.max()}")
    width = 1 << int(len(lengths) - 1).bit_length()  # leaves: every item may need a row of its own
    free = [capacity] * (2 * width)
    rows: list[list[int]] = []
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        node = 1
        while node < width:
            node *= 2
            if free[node] < length:
                node += 1
        if node - width == len(rows):  # rows open from left to right
            rows.append([])
        rows[node - width].append(item)
        free[node] -= length
        while node > 1:
            node //= 2
            largest = max(free[2 * node], free[2 * node + 1])
            if free[node] == largest:
                break
            free[node] = largest
    return rows


@dataclass(frozen=True)
class Pieces:
    """Documents to pack: piece p is `samples[sample_P[p]].ids[start_P[p]:stop_P[p]]`, in the samples' order.

    A piece refers to its whole sample, because a teacher store knows only whole samples.
    """

    sample_P: np.ndarray
    start_P: np.ndarray
    stop_P: np.ndarray
    dropped_samples: int  # too long, under "drop"
    dropped_pieces: int  # without a supervised target, under "split"

    @property
    def length_P(self) -> np.ndarray:
        """Tokens of each piece."""
        return self.stop_P - self.start_P


def fitting(samples: "Sequence[Sample]", capacity: int, overlong: str, keys: tuple[str, str]) -> "list[Sample]":
    """The samples of at most `capacity` tokens; overlong: "error" or "drop".

    keys: of the capacity, and of `overlong` with its remedy (such as a.overlong=drop, or ""), for messages. Raises
    UserError for a longer sample unless it may be dropped, and when each of them is.
    """
    kept = [sample for sample in samples if len(sample.ids) <= capacity]
    if overlong == "error" and len(kept) < len(samples):
        raise _too_long(next(sample for sample in samples if len(sample.ids) > capacity), capacity, keys)
    if samples and not kept:
        fault = f"each of the {len(samples)} samples is longer than {capacity} tokens, so nothing is left; raise it"
        raise UserError(f"{keys[0]}: {fault}")
    return kept


def _too_long(sample: "Sample", capacity: int, keys: tuple[str, str]) -> UserError:
    remedy = f", or choose {keys[1]}" if keys[1] else ""
    fault = f"record {sample.record_id!r} has {len(sample.ids)} tokens, more than sequence_length={capacity}"
    return UserError(f"{keys[0]}: {fault}; raise it{remedy}")


def cut(samples: "Sequence[Sample]", capacity: int, overlong: str, key: str = "data") -> Pieces:
    """Cut samples into pieces of at most `capacity` tokens; `overlong` decides on longer samples. key: for messages.

    "error" raises UserError; "drop" leaves the sample out and counts it; "split" cuts it. Neighbouring pieces share one
    token: the last of a piece is predicted there and is only context in the next, so no supervised target is lost. A
    piece of a cut sample that has no supervised target is left out and counted.
    """
    found: list[tuple[int, int, int]] = []
    dropped_samples = dropped_pieces = 0
    for index, sample in enumerate(samples):
        length = len(sample.ids)
        if length <= capacity:
            found.append((index, 0, length))
        elif overlong == "error":
            raise _too_long(sample, capacity, (f"{key}.sequence_length", f"{key}.overlong=drop or split"))
        elif overlong == "drop":
            dropped_samples += 1
        else:
            for start in range(0, length - 1, capacity - 1):
                stop = min(start + capacity, length)
                if sample.supervised[start + 1 : stop].any():
                    found.append((index, start, stop))
                else:
                    dropped_pieces += 1
    sample_P, start_P, stop_P = np.array(found, np.int64).reshape(-1, 3).T
    return Pieces(sample_P, start_P, stop_P, dropped_samples, dropped_pieces)


@dataclass
class FilledRows:
    """Packed rows before weighting, all [R, L]; `placements[r]` lists (piece, first column) of row r."""

    input_ids_RL: np.ndarray  # int32; 0 in padding
    target_ids_RL: np.ndarray  # int32, shifted; 0 where nothing is supervised
    target_supervised_RL: np.ndarray  # bool
    segment_ids_RL: np.ndarray  # int32; 1.. within a row, 0 is padding
    position_ids_RL: np.ndarray  # int32; from 0 in every segment
    placements: list[list[tuple[int, int]]]


def fill(
    rows: Sequence[Sequence[int]], pieces: Pieces, samples: "Sequence[Sample]", sequence_length: int
) -> FilledRows:
    """Concatenate the pieces of each row in the given order, and shift each piece on its own.

    An empty row is all padding. Raises ValueError when a row is overfull.
    """
    kinds = (np.int32, np.int32, bool, np.int32, np.int32)
    filled = FilledRows(*(np.zeros((len(rows), sequence_length), kind) for kind in kinds), [[] for _ in rows])
    for r, row in enumerate(rows):
        column = 0
        for segment, piece in enumerate(row, start=1):
            sample = samples[pieces.sample_P[piece]]
            part = slice(pieces.start_P[piece], pieces.stop_P[piece])
            ids = sample.ids[part]
            end = column + len(ids)
            if end > sequence_length:
                raise ValueError(f"row {r} holds more than {sequence_length} tokens")
            filled.input_ids_RL[r, column:end] = ids
            targets = shift(ids, sample.supervised[part])
            filled.target_ids_RL[r, column:end], filled.target_supervised_RL[r, column:end] = targets
            filled.segment_ids_RL[r, column:end] = segment
            filled.position_ids_RL[r, column:end] = np.arange(len(ids))
            filled.placements[r].append((int(piece), column))
            column = end
    return filled
