"""Choosing the next token from logits, in NumPy: repetition penalty, then greedy, or temperature, top-k and top-p.

The definitions and their order are those of transformers; among equal logits the lowest id is the more probable. Each
sequence draws from its own generator, one number a token. Legend: B sequences, V vocabulary, M candidates, S steps.
"""

import numpy as np

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.generation.options import SamplingOptions

NUCLEUS_CANDIDATES = 1024  # top-p looks at this many first; a flatter row is sorted whole


def sample_seed(seed: int, record_id: str, index: int) -> int:
    """The seed (60 bits) of one generation: a function of the run, the record and the sample, never of the batch."""
    return int(files.sha256_json([seed, record_id, index])[:15], 16)


def uniforms(seeds: list[int], steps: int) -> np.ndarray:
    """uniform_BS in [0, 1): row b is the stream of seed b; a longer stream starts with the shorter one."""
    return np.stack([np.random.Generator(np.random.PCG64(seed)).random(steps) for seed in seeds])


def penalise(logits_BV: np.ndarray, seen_BV: np.ndarray, penalty: float) -> np.ndarray:
    """Logits whose ids marked in `seen_BV` are divided by `penalty` where positive, multiplied where negative."""
    return np.where(seen_BV, np.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def choose(logits_BV: np.ndarray, options: SamplingOptions, uniform_B: np.ndarray) -> np.ndarray:
    """token_B int32, drawn by inverting the cumulative distribution at `uniform_B` (unused when greedy).

    top_p keeps the smallest set of most probable ids that reaches its mass, after top_k and at this temperature. Raises
    UserError when a row holds NaN or no finite logit.
    """
    peak_B1 = logits_BV.max(axis=1, keepdims=True)
    if not np.isfinite(peak_B1).all():
        raise UserError("the model produced NaN or infinite logits: its weights are damaged, or its training diverged")
    if options.temperature == 0:
        return logits_BV.argmax(axis=1).astype(np.int32)
    weight_BV = np.exp((logits_BV.astype(np.float64) - peak_B1) / options.temperature)
    vocabulary = weight_BV.shape[1]
    top_k = min(options.top_k or vocabulary, vocabulary)
    if options.top_p >= 1 and top_k == vocabulary:
        return _invert(weight_BV, uniform_B).astype(np.int32)
    candidates = top_k if options.top_k else min(NUCLEUS_CANDIDATES, vocabulary)
    ids_BM, weight_BM = _most_probable(logits_BV, weight_BV, candidates)
    total_B1 = (weight_BM if options.top_k else weight_BV).sum(axis=1, keepdims=True)
    if candidates < top_k and (weight_BM.sum(axis=1, keepdims=True) < options.top_p * total_B1).any():
        ids_BM, weight_BM = _most_probable(logits_BV, weight_BV, vocabulary)
    mass_before_BM = np.cumsum(weight_BM, axis=1) - weight_BM
    weight_BM = np.where(mass_before_BM < options.top_p * total_B1, weight_BM, 0.0)
    place_B1 = _invert(weight_BM, uniform_B)[:, None]
    return np.take_along_axis(ids_BM, place_B1, axis=1)[:, 0].astype(np.int32)


def _most_probable(logits_BV, weight_BV, count: int) -> tuple[np.ndarray, np.ndarray]:
    """ids_BM and weight_BM of the `count` largest logits of each row, in falling order, ties by rising id."""
    rows, vocabulary = logits_BV.shape
    if count == vocabulary:
        ids_BM = np.argsort(-logits_BV, axis=1, kind="stable")
    else:
        bar_B1 = -np.partition(-logits_BV, count - 1, axis=1)[:, count - 1 : count]
        above_BV, equal_BV = logits_BV > bar_B1, logits_BV == bar_B1
        missing_B1 = count - above_BV.sum(axis=1, keepdims=True)
        kept_BV = above_BV | (equal_BV & (np.cumsum(equal_BV, axis=1) <= missing_B1))
        ids_BM = np.nonzero(kept_BV)[1].reshape(rows, count)
        order_BM = np.argsort(-np.take_along_axis(logits_BV, ids_BM, axis=1), axis=1, kind="stable")
        ids_BM = np.take_along_axis(ids_BM, order_BM, axis=1)
    return ids_BM, np.take_along_axis(weight_BV, ids_BM, axis=1)


def _invert(weight_BM: np.ndarray, uniform_B: np.ndarray) -> np.ndarray:
    """The first place whose cumulative weight exceeds uniform * total; never a place of weight 0."""
    cumulative_BM = np.cumsum(weight_BM, axis=1)
    place_B = (cumulative_BM <= uniform_B[:, None] * cumulative_BM[:, -1:]).sum(axis=1)
    last_B = weight_BM.shape[1] - 1 - (weight_BM[:, ::-1] > 0).argmax(axis=1)
    return np.minimum(place_B, last_B)  # uniform * total can round up to the total
