"""The distillation operator from plain MindSpore operators, which have kernels on the CPU and on Ascend.

Shapes: N tokens, V vocabulary, K teacher ids a token, J = K + 1 (the label, then the teacher's ids). The mathematics is
that of `losses/oracle.py`; the contract is that of `ops/topk_distill.py`. How the digits are kept in float32:
- the label and the support are taken out of the row and pushed to -1e30 there (never -inf): softmax and log-sum-exp run
  over the rest alone, so no mass is ever 1 - sum, and the gradient at a confident label is not a difference either;
- what is K wide, and every normaliser, is float64 on the CPU, whose float32 exp is off by up to 8e-6;
- outside label and support the gradient is one coefficient a row times the softmax of the rest; inside it is J values.
The vocabulary is read twice at T = 1, three times otherwise, and the gradient is a second [N, V] array.
"""

import mindspore as ms
from mindspore import nn, ops

from mindspore_impl import runtime
from mindspore_impl.ops.divergence_codes import DIVERGENCES

FAR = -1e30  # finite: 0 * FAR is 0 where 0 * -inf is NaN, and exp(FAR) is 0
SMALLEST = 1e-37  # just above the smallest normal float32


def wide_dtype():
    """The dtype of sums whose digits matter and that are cheap: float64, or float32 where the device has none."""
    return ms.float64 if runtime.device() == "CPU" else ms.float32


class RowLogSumExp(nn.Cell):
    """construct(x_NV f32) -> (log_sum_N1, max_N1, q_NV): logsumexp(x) = max + log_sum, and the softmax.

    The first two are in `wide_dtype` and kept apart for their digits.
    """

    def __init__(self):
        super().__init__()
        self.wide = wide_dtype()

    def construct(self, x_NV):
        # The largest probability is exp(0) / sum: one fused kernel does what subtract, exp and sum would, more exactly
        # than log_softmax, and what it leaves is the gradient.
        q_NV = ops.softmax(x_NV, -1)
        log_sum_N1 = -ops.log(q_NV.max(axis=1, keepdims=True).astype(self.wide))
        return log_sum_N1, x_NV.max(axis=1, keepdims=True).astype(self.wide), q_NV


def log_add(a, b):
    """log(exp(a) + exp(b)) without overflow, or underflow of the larger."""
    top = ops.maximum(a, b)
    return top + ops.log(ops.exp(a - top) + ops.exp(b - top))


def log_sum_exp(x_NK):
    """log of the sum of exp over the last axis of K entries (kept), where FAR marks padding."""
    top_N1 = x_NK.max(axis=1, keepdims=True)
    return top_N1 + ops.log(ops.exp(x_NK - top_N1).sum(axis=1, keepdims=True))


def _forward_kl(log_p, log_q):
    p = ops.exp(log_p)
    return p * (log_p - log_q), -p


def _reverse_kl(log_p, log_q):
    parts = ops.exp(log_q) * (log_q - log_p)
    return parts, parts


def _jsd(log_p, log_q):
    p, q = ops.exp(log_p), ops.exp(log_q)
    log_m = ops.log(ops.maximum(0.5 * (p + q), SMALLEST))
    slope = 0.5 * q * (log_q - log_m)
    return 0.5 * p * (log_p - log_m) + slope, slope


# (log_p, log_q) -> each bucket's part of D, and dD / d(log q) as in the oracle
_BUCKETS = dict(zip(DIVERGENCES, (_forward_kl, _reverse_kl, _jsd), strict=True))


class BuiltInDivergence(nn.Cell):
    """construct(log_p_NI, log_q_NI) -> (D_N1, dD / d(log q) NI) over I buckets, by formula."""

    def __init__(self, name: str):
        super().__init__()
        self.buckets = _BUCKETS[name]

    def construct(self, log_p_NI, log_q_NI):
        parts_NI, slope_NI = self.buckets(log_p_NI, log_q_NI)
        return parts_NI.sum(axis=1, keepdims=True), slope_NI


class DifferentiatedDivergence(nn.Cell):
    """`BuiltInDivergence` of a Cell (log_p_NI, log_q_NI) -> D_N, by automatic differentiation."""

    def __init__(self, cell: nn.Cell):
        super().__init__()
        self.cell = cell
        self.gradient = ops.GradOperation(get_all=True)  # of the sum over rows, which are independent

    def construct(self, log_p_NI, log_q_NI):
        return self.cell(log_p_NI, log_q_NI).reshape((-1, 1)), self.gradient(self.cell)(log_p_NI, log_q_NI)[1]


class ComposedTopkDistill(nn.Cell):
    """See `ops/topk_distill.topk_distill`; with `gradient` False the last output is left out."""

    def __init__(self, divergence, support, temperature, ce_weight, kd_weight, gradient):
        super().__init__()
        built_in = isinstance(divergence, str)
        self.divergence = BuiltInDivergence(divergence) if built_in else DifferentiatedDivergence(divergence)
        self.support, self.temperature = support, temperature
        self.ce_weight, self.kd_weight, self.gradient = ce_weight, kd_weight, gradient
        self.wide = wide_dtype()
        self.log_sum = RowLogSumExp()
        self.scatter_add = ops.TensorScatterElements(axis=1, reduction="add")

    def construct(self, logits_NV, target_ids_N, row_weight_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N):
        kept_dtype = logits_NV.dtype
        logits_NV = logits_NV.astype(ms.float32)
        label_ids_N1 = target_ids_N.reshape((-1, 1))
        valid_NK = teacher_ids_NK >= 0
        same_NK = teacher_ids_NK == label_ids_N1
        inside_N1 = same_NK.astype(ms.float32).max(axis=1, keepdims=True) > 0
        ids_NJ = ops.concat((label_ids_N1, ops.select(valid_NK, teacher_ids_NK, ops.zeros_like(teacher_ids_NK))), 1)
        far_NJ = ops.full_like(ids_NJ, FAR, dtype=ms.float32)
        far_NK = far_NJ[:, 1:]
        penalty_NK = ops.select(valid_NK, far_NK, ops.zeros_like(far_NK))

        # Logits from here on are relative to the row's largest one. A label inside the support is read there and not
        # counted twice: its gradient q - 1 is then one number, not two that are rounded apart.
        far_NJ = ops.concat((far_NJ[:, :1], penalty_NK), 1)
        chosen_NJ = ops.gather_elements(logits_NV, 1, ids_NJ).astype(self.wide)
        rest_NV = self.scatter_add(logits_NV, ids_NJ, far_NJ)
        rest_log_sum_N1, rest_max_N1, rest_q_NV = self.log_sum(rest_NV)
        far_NK = far_NK.astype(self.wide)
        support_NK = ops.select(valid_NK, chosen_NJ[:, 1:], far_NK)
        row_max_N1 = ops.maximum(ops.maximum(rest_max_N1, chosen_NJ[:, :1]), support_NK.max(axis=1, keepdims=True))
        z_NK = support_NK - row_max_N1
        lone_N1 = ops.select(inside_N1, far_NK[:, :1], chosen_NJ[:, :1] - row_max_N1)
        label_N1 = ops.select(
            inside_N1, ops.select(same_NK, z_NK, ops.zeros_like(z_NK)).sum(axis=1, keepdims=True), lone_N1
        )
        rest_N1 = rest_log_sum_N1 + (rest_max_N1 - row_max_N1)

        ce_N1, ce_rest_N1, ce_NJ = self._cross_entropy(rest_N1, lone_N1, z_NK, label_N1, same_NK, inside_N1)
        cool_q_NV = rest_q_NV
        if self.temperature != 1.0:
            z_NK, lone_N1 = z_NK / self.temperature, lone_N1 / self.temperature
            rest_log_sum_N1, _, cool_q_NV = self.log_sum(rest_NV / self.temperature)
            rest_N1 = rest_log_sum_N1 + (rest_max_N1 - row_max_N1) / self.temperature
        log_p_NK = ops.select(valid_NK, teacher_logp_NK, ops.full_like(teacher_logp_NK, FAR)).astype(self.wide)
        log_p_tail_N1 = teacher_tail_logp_N.reshape((-1, 1)).astype(self.wide)
        vocab_size = logits_NV.shape[1]
        if self.support == "tail_bucket" and teacher_ids_NK.shape[1] >= vocab_size:
            some_N1 = valid_NK.astype(ms.int32).sum(axis=1, keepdims=True) < vocab_size
            log_p_tail_N1 = ops.select(some_N1, log_p_tail_N1, far_NK[:, :1])
        log_tail_N1 = log_add(rest_N1, lone_N1)
        kd_N1, kd_NK, kd_tail_N1, log_q_NK = self._divergence_of(z_NK, log_tail_N1, log_p_NK, log_p_tail_N1)

        counted_N1 = (row_weight_N != 0).reshape((-1, 1))
        diagnostics_N4 = self._diagnose(log_p_NK, log_p_tail_N1, log_q_NK, support_NK, row_max_N1)
        values_N6 = ops.concat((ce_N1, self.temperature**2 * kd_N1, diagnostics_N4), 1).astype(ms.float32)
        values_N6 = ops.select(counted_N1.expand_as(values_N6), values_N6, ops.zeros_like(values_N6))
        ce_N, kd_N, diagnostics_4N = values_N6[:, 0], values_N6[:, 1], values_N6[:, 2:].transpose((1, 0))
        if not self.gradient:
            return ce_N, kd_N, diagnostics_4N

        # d(z / T) / dz leaves one T of the divergence's two.
        weight_N1 = row_weight_N.reshape((-1, 1)).astype(self.wide)
        ce_weight_N1, kd_weight_N1 = self.ce_weight * weight_N1, self.kd_weight * self.temperature * weight_N1
        kd_rest_N1 = kd_tail_N1 * ops.exp(rest_N1 - log_tail_N1)
        kd_lone_N1 = kd_tail_N1 * ops.exp(lone_N1 - log_tail_N1)
        kd_lone_N1 = ops.select(inside_N1, ops.zeros_like(kd_lone_N1), kd_lone_N1)
        kd_NJ = ops.concat((kd_lone_N1, kd_NK), 1)
        real_NJ = ops.concat((counted_N1, valid_NK.logical_and(counted_N1)), 1)
        patch_NJ = ce_weight_N1 * ce_NJ + kd_weight_N1 * kd_NJ
        patch_NJ = ops.select(real_NJ, patch_NJ, ops.zeros_like(patch_NJ)).astype(ms.float32)
        grad_NV = self._spread(counted_N1, ce_weight_N1 * ce_rest_N1, kd_weight_N1 * kd_rest_N1, rest_q_NV, cool_q_NV)
        # The softmax of the rest is exactly 0 at label and support, so one scatter puts their gradients in.
        grad_NV = self.scatter_add(grad_NV, ids_NJ, patch_NJ)
        return ce_N, kd_N, diagnostics_4N, grad_NV.astype(kept_dtype)

    def _spread(self, counted_N1, ce_N1, kd_N1, rest_q_NV, cool_q_NV):
        """The gradient outside label and support; the coefficients of rows of weight 0 are put to 0, finite or not."""
        zero_N1 = ops.zeros_like(ce_N1)
        if self.temperature == 1.0:
            return ops.select(counted_N1, ce_N1 + kd_N1, zero_N1).astype(ms.float32) * rest_q_NV
        ce_N1 = ops.select(counted_N1, ce_N1, zero_N1).astype(ms.float32)
        return ce_N1 * rest_q_NV + ops.select(counted_N1, kd_N1, zero_N1).astype(ms.float32) * cool_q_NV

    def _cross_entropy(self, rest_N1, lone_N1, z_NK, label_N1, same_NK, inside_N1):
        """-> CE, its gradient's factor of the softmax of the rest, and its gradient at label and support."""
        log_norm_N1 = log_add(log_add(rest_N1, lone_N1), log_sum_exp(z_NK))
        q_NK, q_rest_N1 = ops.exp(z_NK - log_norm_N1), ops.exp(rest_N1 - log_norm_N1)
        # At the label the gradient is q - 1: minus the sum of all the others.
        others_N1 = q_rest_N1 + ops.select(same_NK, ops.zeros_like(q_NK), q_NK).sum(axis=1, keepdims=True)
        lone_grad_N1 = ops.select(inside_N1, ops.zeros_like(others_N1), -others_N1)
        support_NK = ops.select(same_NK, -others_N1.expand_as(q_NK), q_NK)
        return log_norm_N1 - label_N1, q_rest_N1, ops.concat((lone_grad_N1, support_NK), 1)

    def _divergence_of(self, z_NK, log_tail_N1, log_p_NK, log_p_tail_N1):
        """-> D, dD/dz on the support, dD/dz summed over the tail (in which it follows the softmax), and log q."""
        log_q_NK = z_NK - log_add(log_tail_N1, log_sum_exp(z_NK))
        log_q_tail_N1 = log_tail_N1 - log_add(log_tail_N1, log_sum_exp(z_NK))
        q_tail_N1 = ops.exp(log_q_tail_N1)
        if self.support == "renormalised":
            on_ids_NK = z_NK - log_sum_exp(z_NK)
            value_N1, slope_NK = self.divergence(log_p_NK - log_sum_exp(log_p_NK), on_ids_NK)
            grad_NK = slope_NK - ops.exp(on_ids_NK) * slope_NK.sum(axis=1, keepdims=True)
            return value_N1, grad_NK, ops.zeros_like(value_N1), log_q_NK
        if self.support == "tail_bucket":
            log_p_NJ = ops.concat((log_p_NK, log_p_tail_N1), 1)
            value_N1, slope_NJ = self.divergence(log_p_NJ, ops.concat((log_q_NK, log_q_tail_N1), 1))
            slope_NK, tail_slope_N1 = slope_NJ[:, :-1], slope_NJ[:, -1:]
        else:
            value_N1, slope_NK = self.divergence(log_p_NK, log_q_NK)
            tail_slope_N1 = ops.zeros_like(value_N1)
        total_N1 = slope_NK.sum(axis=1, keepdims=True) + tail_slope_N1
        grad_NK = slope_NK - ops.exp(log_q_NK) * total_N1
        return value_N1, grad_NK, tail_slope_N1 - q_tail_N1 * total_N1, log_q_NK

    def _diagnose(self, log_p_NK, log_p_tail_N1, log_q_NK, support_NK, row_max_N1):
        p_NK = ops.exp(log_p_NK)
        entropy_N1 = -(p_NK * log_p_NK).sum(axis=1, keepdims=True) - ops.exp(log_p_tail_N1) * log_p_tail_N1
        # They agree when the student's logit at the teacher's first id is the largest of the row: no argmax over V.
        first_NK = log_p_NK >= log_p_NK.max(axis=1, keepdims=True)
        at_first_N1 = ops.select(first_NK, support_NK, ops.full_like(support_NK, FAR)).max(axis=1, keepdims=True)
        agreement_N1 = (at_first_N1 >= row_max_N1).astype(self.wide)
        masses = p_NK.sum(axis=1, keepdims=True), ops.exp(log_q_NK).sum(axis=1, keepdims=True)
        return ops.concat((entropy_N1, *masses, agreement_N1), 1)


class ComposedCrossEntropy(nn.Cell):
    """See `ops/topk_distill.cross_entropy`: softmax, log and one gather, for speed. Reads no teacher.

    The price is an absolute error of up to 4e-6 in loss and gradient.
    """

    def __init__(self, ce_weight: float, gradient: bool):
        super().__init__()
        self.ce_weight, self.gradient = ce_weight, gradient
        self.scatter_add = ops.TensorScatterElements(axis=1, reduction="add")

    def construct(self, logits_NV, target_ids_N, row_weight_N, *_):
        kept_dtype = logits_NV.dtype
        log_q_NV = ops.log_softmax(logits_NV.astype(ms.float32), -1)
        label_ids_N1, counted_N = target_ids_N.reshape((-1, 1)), row_weight_N != 0
        ce_N = -ops.gather_elements(log_q_NV, 1, label_ids_N1).reshape((-1,))
        ce_N = ops.select(counted_N, ce_N, ops.zeros_like(ce_N))
        zero_N = ops.zeros_like(ce_N)
        outputs = ce_N, zero_N, ops.stack((zero_N, zero_N, zero_N, zero_N))
        if not self.gradient:
            return outputs
        weight_N1 = (self.ce_weight * row_weight_N).reshape((-1, 1))
        grad_NV = self.scatter_add(ops.exp(log_q_NV) * weight_N1, label_ids_N1, -weight_N1)
        return outputs + (grad_NV.astype(kept_dtype),)
