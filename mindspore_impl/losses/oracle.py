"""The objective in float64 NumPy with its analytic gradient: the reference every other implementation is held to.

Shapes: N tokens, V vocabulary, K teacher ids a token. It shares no code with the operators and loops over rows, so
that each line can be read beside the formula. With q = softmax(z / T) and p the stored teacher masses (taken as they
are: the store's reader has made the K+1 masses sum to one), the objective is

    loss = sum_t w_t * [ce_weight * CE(t) + kd_weight * KD(t)],   CE at temperature 1,   KD = T^2 * D(p, q)

Supports: which buckets D is summed over.
    tail_bucket    the K ids, and one bucket for everything else: a divergence, and a lower bound of the full one.
    renormalised   the K ids alone, p and q each scaled to sum to one on them: 0 when K = 1, blind to the tail.
    truncated      sum_k p_k (log p_k - log q_k) over the K ids with the masses of the full vocabulary. Not a
                   divergence: it can be negative, and is not clamped.
    sampled        the same sum, where p_k = count_k / draws of ids drawn from the teacher. It sums to one, there is no
                   tail, and its gradient is an unbiased estimate of the gradient of the full forward KL.
Divergences over the buckets i:
    forward_kl     sum_i p_i (log p_i - log q_i)
    reverse_kl     sum_i q_i (log q_i - log p_i)
    jsd            (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, bucket by bucket on the same support. The
                   weight is fixed at one half: at an end point it would be a silent no-op (use the named KL).
"""

import math
from typing import NamedTuple

import numpy as np

from mindspore_impl.errors import UserError
from mindspore_impl.losses.divergences import divergence_names, find_divergence
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.ops.divergence_codes import SUPPORTS, supports_of
from mindspore_impl.schema import nearest


class Objective(NamedTuple):
    """What `objective` returns, float64; `kd_N` already carries T^2, neither carries a weight."""

    loss: float
    ce_N: np.ndarray
    kd_N: np.ndarray
    grad_NV: np.ndarray  # of `loss` with respect to the logits
    diagnostics: dict[str, np.ndarray]  # teacher_entropy, teacher_mass, student_mass, agreement, each [N]


def ce_weight(options: ObjectiveOptions) -> float:
    """The weight of the cross-entropy: as given, or what `kd_weight` leaves of one."""
    return 1.0 - options.kd_weight if options.ce_weight is None else options.ce_weight


def check_objective(options: ObjectiveOptions, key: str = "objective") -> None:
    """Refuse settings that have no meaning. Raises UserError that names the setting below `key`."""
    find_divergence(options.divergence, f"{key}.divergence")
    if options.support not in SUPPORTS:
        raise UserError(f"{key}.support={options.support} is unknown{nearest(options.support, SUPPORTS)}")
    if options.support not in supports_of(options.divergence):
        allowed = [name for name in divergence_names() if options.support in supports_of(name)]
        fault = f"{key}.divergence={options.divergence} is not defined on {key}.support={options.support}"
        either = f"{key}.divergence={' or '.join(allowed)}"
        raise UserError(f"{fault}; use {either} or {key}.support={' or '.join(supports_of(options.divergence))}")
    if not (math.isfinite(options.temperature) and options.temperature > 0):
        raise UserError(f"{key}.temperature={options.temperature} must be a positive number")
    for name, weight in (("kd_weight", options.kd_weight), ("ce_weight", ce_weight(options))):
        if not (math.isfinite(weight) and weight >= 0):
            hint = f" (it defaults to 1 - kd_weight={options.kd_weight})" if name == "ce_weight" else ""
            raise UserError(f"{key}.{name}={weight} must be 0 or more{hint}")
    if options.kd_weight == 0 and ce_weight(options) == 0:
        raise UserError(f"{key}.ce_weight and {key}.kd_weight are both 0: there is nothing to learn")


def objective(
    logits_NV: np.ndarray,
    target_ids_N: np.ndarray,
    loss_weight_N: np.ndarray,
    teacher_ids_NK: np.ndarray | None,
    teacher_logp_NK: np.ndarray | None,
    teacher_tail_logp_N: np.ndarray | None,
    options: ObjectiveOptions,
) -> Objective:
    """Loss, its parts and its gradient, in float64. Rows of weight 0 add exactly 0.

    Args:
        logits_NV: of the student.
        target_ids_N: int, the labels.
        loss_weight_N: the weight of each row in the loss.
        teacher_ids_NK: int, -1 pads K; None (as the next two) leaves KD out.
        teacher_logp_NK: log-masses of the ids at `options.temperature`.
        teacher_tail_logp_N: log-mass of all other ids; read on tail_bucket only, and for the entropy.
        options: the objective.

    Raises UserError for options that do not fit together, an id outside the vocabulary, or an id given twice.
    """
    check_objective(options)
    logits_NV = np.asarray(logits_NV, np.float64)
    count, vocab = logits_NV.shape
    ce_N, kd_N, grad_NV = np.zeros(count), np.zeros(count), np.zeros((count, vocab))
    diagnostics = {name: np.zeros(count) for name in ("teacher_entropy", "teacher_mass", "student_mass", "agreement")}
    loss = 0.0
    for row in range(count):
        target, weight = int(target_ids_N[row]), float(loss_weight_N[row])
        if not 0 <= target < vocab:
            raise UserError(f"oracle: target id {target} in row {row} is outside the vocabulary of {vocab}")
        log_q_V = log_softmax(logits_NV[row])
        ce_N[row] = -log_q_V[target]
        ce_grad_V = np.exp(log_q_V)
        ce_grad_V[target] = -_sum_except(ce_grad_V, [target])
        kd_grad_V = np.zeros(vocab)
        if teacher_ids_NK is not None:
            ids_K, log_p_K, log_tail = _teacher_row(
                teacher_ids_NK[row], teacher_logp_NK[row], teacher_tail_logp_N[row], vocab
            )
            kd_N[row], kd_grad_V = _distill_row(logits_NV[row], ids_K, log_p_K, log_tail, options)
            for name, value in _diagnose_row(logits_NV[row], ids_K, log_p_K, log_tail, options.temperature).items():
                diagnostics[name][row] = value
        if weight != 0:
            loss += weight * (ce_weight(options) * ce_N[row] + options.kd_weight * kd_N[row])
            grad_NV[row] = weight * (ce_weight(options) * ce_grad_V + options.kd_weight * kd_grad_V)
    return Objective(loss, ce_N, kd_N, grad_NV, diagnostics)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits over the last axis, in their dtype; NaN where a logit is not finite."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        shifted = x - x.max(axis=-1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _log_sum_exp(z_V: np.ndarray) -> float:
    return float(z_V.max() + np.log(np.exp(z_V - z_V.max()).sum())) if z_V.size else -np.inf


def _sum_except(values_V: np.ndarray, ids) -> float:
    """The sum over every id but these: 1 - values_V[ids].sum() without the cancellation."""
    return float(np.delete(values_V, ids).sum())


def _teacher_row(ids_K, log_p_K, log_tail, vocab: int):
    ids_K, log_p_K = np.asarray(ids_K, np.int64), np.asarray(log_p_K, np.float64)
    keep_K = ids_K >= 0
    ids_K, log_p_K = ids_K[keep_K], log_p_K[keep_K]
    if ids_K.size and ids_K.max() >= vocab:
        raise UserError(f"oracle: teacher id {ids_K.max()} is outside the vocabulary of {vocab}")
    if np.unique(ids_K).size != ids_K.size:
        raise UserError("oracle: a teacher id is given twice in one row; merge the masses of equal ids")
    return ids_K, log_p_K, float(log_tail)


def _distill_row(z_V, ids_K, log_p_K, log_tail, options: ObjectiveOptions) -> tuple[float, np.ndarray]:
    """T^2 * D of one row, and its gradient with respect to the logits z."""
    temperature, divergence = options.temperature, find_divergence(options.divergence).oracle
    grad_V = np.zeros(z_V.size)
    if ids_K.size == 0 and options.support != "tail_bucket":
        return 0.0, grad_V
    log_q_V = log_softmax(z_V / temperature)
    if options.support == "renormalised":
        log_p_K = log_p_K - _log_sum_exp(log_p_K)
        log_q_K = log_q_V[ids_K] - _log_sum_exp(log_q_V[ids_K])
        value, slope_K = divergence(log_p_K, log_q_K)
        grad_V[ids_K] = slope_K - np.exp(log_q_K) * slope_K.sum()
    elif options.support in ("truncated", "sampled"):
        value, slope_K = divergence(log_p_K, log_q_V[ids_K])
        grad_V = -np.exp(log_q_V) * slope_K.sum()
        grad_V[ids_K] += slope_K
    else:
        outside_V = np.ones(z_V.size, bool)
        outside_V[ids_K] = False
        log_p, log_q = log_p_K, log_q_V[ids_K]
        if outside_V.any():
            log_q_tail = _log_sum_exp(log_q_V[outside_V])
            log_p, log_q = np.append(log_p, log_tail), np.append(log_q, log_q_tail)
        value, slope = divergence(log_p, log_q)
        grad_V = -np.exp(log_q_V) * slope.sum()
        grad_V[ids_K] += slope[: ids_K.size]
        if outside_V.any():
            grad_V[outside_V] += slope[-1] * np.exp(log_q_V[outside_V] - log_q_tail)
    return temperature**2 * value, temperature * grad_V  # d(z / T) / dz leaves one T of the two


def _diagnose_row(z_V, ids_K, log_p_K, log_tail, temperature: float) -> dict[str, float]:
    log_p = np.append(log_p_K, log_tail) if ids_K.size < z_V.size else log_p_K
    first_K = ids_K[log_p_K == log_p_K.max()] if ids_K.size else ids_K  # several when masses are equal
    agreement = bool(first_K.size) and z_V[first_K].max() >= z_V.max()
    return {
        "teacher_entropy": float(-(np.exp(log_p) * log_p).sum()),
        "teacher_mass": float(np.exp(log_p_K).sum()),
        "student_mass": float(np.exp(log_softmax(z_V / temperature)[ids_K]).sum()),
        "agreement": float(agreement),
    }
