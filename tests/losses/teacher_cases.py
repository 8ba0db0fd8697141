"""Random logits and teacher rows for the tests of the objective. Legend: N tokens, V vocabulary, K teacher ids."""

from typing import NamedTuple

import numpy as np
from mindspore import Tensor

from mindspore_impl.losses.divergences import for_operator
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import Objective, objective
from mindspore_impl.ops.divergence_codes import DIVERGENCES, supports_of
from mindspore_impl.ops.topk_distill import topk_distill

PAIRS = [(divergence, support) for divergence in DIVERGENCES for support in supports_of(divergence)]
TOLERANCE = 1e-5
TERMS = ((1.0, 0.0), (0.0, 1.0), (0.3, 0.7))  # weights of cross-entropy and divergence
BOTH = TERMS[2:]
MASKS = ("none", "all", "first", "last", "some")  # which rows are left out of the loss
SUPPORTS = ("student", "teacher", "random")  # where the K ids lie: the student's top, the teacher's top, anywhere


class Case(NamedTuple):
    logits_NV: np.ndarray
    target_ids_N: np.ndarray
    loss_weight_N: np.ndarray
    teacher_ids_NK: np.ndarray
    teacher_logp_NK: np.ndarray
    teacher_tail_logp_N: np.ndarray


def log_softmax(x_NV: np.ndarray) -> np.ndarray:
    x_NV = np.asarray(x_NV, np.float64)
    x_NV = x_NV - x_NV.max(-1, keepdims=True)
    return x_NV - np.log(np.exp(x_NV).sum(-1, keepdims=True))


def rows_on(ids_NK: np.ndarray, log_p_NV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-masses of the ids, and that of the rest summed directly."""
    outside_NV = np.ones(log_p_NV.shape, bool)
    np.put_along_axis(outside_NV, ids_NK, False, 1)
    with np.errstate(divide="ignore"):
        tail_N = np.log(np.where(outside_NV, np.exp(log_p_NV), 0).sum(1))
    return np.take_along_axis(log_p_NV, ids_NK, 1), np.maximum(tail_N, -1e4)


def make_case(
    seed: int,
    count: int,
    vocab: int,
    top_k: int,
    scale: float,
    temperature: float = 1.0,
    support: str = "teacher",
    mask: str = "some",
    mode: str = "top_k",
    pad: int = 0,
    edges: tuple[int, ...] = (),
) -> Case:
    """float32 inputs of an independent teacher of the same scale; `pad` of the K ids become -1 in every other row.

    edges: ids that are in the support of these rows before any other.
    """
    rng = np.random.default_rng(seed)
    logits_NV = (rng.standard_normal((count, vocab)) * scale).astype(np.float32)
    log_p_NV = log_softmax(rng.standard_normal((count, vocab)) * scale / temperature)
    order_NV = {"student": -logits_NV, "teacher": -log_p_NV, "random": rng.random((count, vocab))}[support]
    order_NV[::2, list(edges)] = -np.inf
    ids_NK = rng.permuted(np.argsort(order_NV, axis=1)[:, :top_k], axis=1).astype(np.int32)  # unsorted
    if mode == "sampled":
        counts_NK = rng.integers(1, 6, (count, top_k))
        logp_NK, tail_N = np.log(counts_NK / counts_NK.sum(1, keepdims=True)), np.full(count, -1e4)
    else:
        logp_NK, tail_N = rows_on(ids_NK, log_p_NV)
    target_ids_N = rng.integers(0, vocab, count)
    target_ids_N[::2] = ids_NK[::2, 0]  # half of the labels lie in the support
    if pad:
        ids_NK[::2, top_k - pad :], logp_NK[::2, top_k - pad :] = -1, -1e4
        if mode == "top_k":
            for row in range(0, count, 2):
                tail_N[row] = rows_on(ids_NK[row : row + 1, : top_k - pad], log_p_NV[row : row + 1])[1][0]
    weight_N = rng.uniform(0.5, 1.5, count)
    left_out = {"none": [], "all": slice(None), "first": [0], "last": [-1], "some": slice(1, None, 3)}[mask]
    weight_N[left_out] = 0
    return Case(
        logits_NV, target_ids_N.astype(np.int32), weight_N.astype(np.float32), ids_NK,
        logp_NK.astype(np.float32), tail_N.astype(np.float32),
    )  # fmt: skip


_graphs: dict = {}


def run_operator(case: Case, divergence, support: str, temperature: float, ce_weight=0.3, kd_weight=0.7, backend=None):
    """Graph mode: (ce_N, kd_N, diagnostics_4N, grad_NV) as NumPy arrays. Graphs are kept by objective."""
    key = (divergence, support, temperature, ce_weight, kd_weight, True, backend)
    if key not in _graphs:
        _graphs[key] = topk_distill(for_operator(divergence), *key[1:])
    logits_NV = Tensor(case.logits_NV.copy())  # a fused backend writes over it
    inputs = [Tensor(array) for array in (case.target_ids_N, case.loss_weight_N, *case[3:])]
    return tuple(out.asnumpy() for out in _graphs[key](logits_NV, *inputs))


def mode_of(support: str) -> str:
    """The mode of the store that a support needs."""
    return "sampled" if support == "sampled" else "top_k"


def half_step(values: np.ndarray, dtype: str) -> np.ndarray | float:
    """Half the distance of neighbouring numbers of a 16-bit dtype around each value: the error of one rounding."""
    if dtype == "float32":
        return 0.0
    digits, smallest = (10, -14) if dtype == "float16" else (7, -126)
    exponent = np.floor(np.log2(np.maximum(np.abs(values), 2.0**smallest)))
    return 2.0 ** (exponent - digits - 1)


def check_operator(run, case: Case, divergence, support, temperature, terms=TERMS, dtype="float32", where=()):
    """Hold run(ce_weight, kd_weight) -> (ce_N, kd_N, diagnostics_4N, grad_NV) to the oracle, for each pair in `terms`.

    A row's error is max|difference| / max|reference|. A cross-entropy and its gradient keep their digits however small.
    A divergence is a difference of two distributions, whose digits go where they meet: its reference is not taken below
    0.02 T^2 (times the row's weight in gradients), and that of a sum of both terms not below the sum of their sizes.
    A gradient of 16 bits may be off by one rounding on top.
    """
    weight_N, on_N, kd_floor = case.loss_weight_N, case.loss_weight_N != 0, 0.02 * temperature**2
    ce_only, kd_only = (
        objective(*case, ObjectiveOptions(kd, ce, divergence, support, temperature)) for ce, kd in TERMS[:2]
    )
    ce_size_N = np.maximum(np.abs(ce_only.grad_NV).max(1), 1e-8 * weight_N)
    kd_size_N = np.maximum(np.abs(kd_only.grad_NV).max(1), (kd_floor + 1e-8) * weight_N)
    diagnostics_N4 = np.stack(list(kd_only.diagnostics.values()), 1)
    for ce, kd in terms:
        ce_N, kd_N, diagnostics_4N, grad_NV = run(ce, kd)
        assert np.isfinite(grad_NV).all() and not grad_NV[~on_N].any(), (where, ce, kd)
        for got, wanted, floor in (
            (ce_N, ce_only.ce_N * on_N, 1e-6),
            (kd_N, kd_only.kd_N * on_N, kd_floor),
            (diagnostics_4N.T, diagnostics_N4 * on_N[:, None], 0.1),
        ):
            assert not got[~on_N].any(), (where, ce, kd)
            assert row_error(got, wanted, floor) <= TOLERANCE, (where, ce, kd)
        wanted_NV = ce * ce_only.grad_NV + kd * kd_only.grad_NV
        room_NV = 1.01 * half_step(wanted_NV, dtype) + TOLERANCE * (ce * ce_size_N + kd * kd_size_N)[:, None]
        assert (np.abs(grad_NV - wanted_NV) <= room_NV).all(), (where, ce, kd, np.abs(grad_NV - wanted_NV).max())


def check_gradient(options: ObjectiveOptions, seeds=range(4)):
    """The oracle's gradient against central differences in float64: scales, pads, masks, labels in and out of K."""
    settings = [(1, 3, 0, "none"), (2, 1, 0, "first"), (1, 10, 4, "some"), (3, 11, 0, "none")]
    for seed in seeds:
        scale, top_k, pad, mask = settings[seed]
        case = make_case(seed, 3, 11, top_k, scale, options.temperature, "random", mask, mode_of(options.support), pad)
        logits_NV = case.logits_NV.astype(np.float64)
        numeric_NV = np.zeros_like(logits_NV)
        for index in np.ndindex(logits_NV.shape):
            step = np.zeros_like(logits_NV)
            step[index] = 1e-5
            up, down = (objective(logits_NV + sign * step, *case[1:], options).loss for sign in (1, -1))
            numeric_NV[index] = (up - down) / 2e-5
        np.testing.assert_allclose(objective(logits_NV, *case[1:], options).grad_NV, numeric_NV, rtol=2e-6, atol=2e-9)


def confident_labels(temperature: float = 1.0) -> tuple[Case, Objective]:
    """Labels with all the mass but 1e-18 of it, in the support and outside; and the oracle of their cross-entropy."""
    case = make_case(6, 7, 423, 10, 1.0, temperature, "random", "none")
    case.logits_NV[np.arange(7), case.target_ids_N] = case.logits_NV.max(1) + 45
    reference = objective(*case, ObjectiveOptions(0.0, temperature=temperature))
    assert 0 < np.abs(reference.grad_NV).max() < 1e-16  # below the resolution of float64 next to 1
    others_NV = np.exp(case.logits_NV.astype(np.float64) - case.logits_NV.max(1, keepdims=True))
    others_NV[np.arange(7), case.target_ids_N] = 0
    return case, reference._replace(ce_N=np.log1p(others_NV.sum(1)))  # the oracle adds them to 1


def falling_tails() -> Case:
    """Seven rows whose K teacher ids the student prefers by more and more: its tail goes from 1e-4 down to 1e-30."""
    rng = np.random.default_rng(0)
    logits_NV = rng.standard_normal((7, 423)).astype(np.float32)
    log_p_NV = log_softmax(rng.standard_normal((7, 423)))
    ids_NK = np.argsort(-log_p_NV, axis=1)[:, :10].astype(np.int32)
    np.put_along_axis(logits_NV, ids_NK, np.take_along_axis(logits_NV, ids_NK, 1) + np.linspace(10, 70, 7)[:, None], 1)
    logp_NK, tail_N = rows_on(ids_NK, log_p_NV)
    return make_case(0, 7, 423, 10, 1.0, mask="none")._replace(
        logits_NV=logits_NV, teacher_ids_NK=ids_NK,
        teacher_logp_NK=logp_NK.astype(np.float32), teacher_tail_logp_N=tail_N.astype(np.float32),
    )  # fmt: skip


def row_error(got: np.ndarray, reference: np.ndarray, floor: np.ndarray | float) -> float:
    """The largest over rows of max|difference| / max|reference|, the latter not below `floor`."""
    got, reference = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (got, reference))
    scale_N = np.maximum(np.abs(reference).max(1), np.maximum(floor, 1e-30))
    return float((np.abs(got - reference).max(1) / scale_N).max())
