"""The distillation operator: cross-entropy, top-k divergence and diagnostics of [N, V] logits, row by row.

Shapes: N tokens, V vocabulary, K teacher ids a token, J = K + 1 (the label, then the teacher's ids). The mathematics is
that of `losses/oracle.py`, which defines every support and divergence; this file says how it is computed.

One backend exists: `composed`, plain MindSpore operators that have kernels on the CPU and on Ascend. `topk_distill` is
the only place that chooses; a fused backend is a Cell of the same signature, registered in `BACKENDS`.

How the composed backend keeps its digits in float32:
- the label and the support are taken out of the row and pushed to -1e30 there (never -inf): softmax and log-sum-exp run
  over the rest alone, so no mass is ever 1 - sum, and the gradient at a confident label is not a difference either;
- what is K wide, and every normaliser, is float64 on the CPU, whose float32 exp is off by up to 8e-6;
- the vocabulary is read once at T = 1, twice otherwise, and written once in the backward pass.
"""

import mindspore as ms
from mindspore import nn, ops

from mindspore_impl import runtime

FAR = -1e30  # finite: 0 * FAR is 0 where 0 * -inf is NaN, and exp(FAR) is 0
SMALLEST = 1e-37  # just above the smallest normal float32


def topk_distill(divergence: str, support: str, temperature: float, backend: str = "composed") -> nn.Cell:
    """The operator for one objective: see `ComposedTopkDistill` for its inputs and outputs.

    `divergence` and `support` are the names of `losses/options.py`. Raises ValueError for a pair without meaning.
    """
    if backend not in BACKENDS:
        raise ValueError(f"topk_distill has no backend {backend!r}; there is {', '.join(BACKENDS)}")
    return BACKENDS[backend](divergence, support, temperature)


def wide_dtype():
    """The dtype of sums whose digits matter and that are cheap: float64, or float32 where the device has none."""
    return ms.float64 if runtime.device() == "CPU" else ms.float32


class RowLogSumExp(nn.Cell):
    """construct(x_NV f32) -> (log_sum_N1, max_N1, q_NV): logsumexp(x) = max + log_sum, and the softmax. No gradient.

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


class SplitRows(nn.Cell):
    """Take some ids out of each row: construct(logits_NV f32, ids_NJ i32, penalty_NJ f32) ->
    (chosen_NJ, rest_log_sum_N1, rest_max_N1, cool_rest_log_sum_N1, rest_q_NV, cool_rest_q_NV).

    `chosen` are the logits at ids, in `wide_dtype`. `rest` is the row with `penalty` (FAR, or 0 where an id is padding)
    added at ids: logsumexp(rest) = rest_max + rest_log_sum, logsumexp(rest / T) = rest_max / T + cool_rest_log_sum.
    Gradients flow into the logits from `chosen` and the two log-sums (as from the whole logsumexp); treat `rest_max`
    and the softmaxes as constants. At T = 1 the cool outputs repeat the others and carry no gradient.
    """

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature, self.wide = temperature, wide_dtype()
        self.log_sum = RowLogSumExp()
        self.scatter_add = ops.TensorScatterElements(axis=1, reduction="add")

    def construct(self, logits_NV, ids_NJ, penalty_NJ):
        chosen_NJ = ops.gather_elements(logits_NV, 1, ids_NJ).astype(self.wide)
        rest_NV = self.scatter_add(logits_NV, ids_NJ, penalty_NJ)
        log_sum_N1, max_N1, q_NV = self.log_sum(rest_NV)
        cool_log_sum_N1, cool_q_NV = log_sum_N1, q_NV
        if self.temperature != 1.0:
            cool_log_sum_N1, _, cool_q_NV = self.log_sum(rest_NV / self.temperature)
        return chosen_NJ, log_sum_N1, max_N1, cool_log_sum_N1, q_NV, cool_q_NV

    def bprop(self, logits_NV, ids_NJ, penalty_NJ, out, dout):
        # The softmax of the rest is exactly 0 at ids, so one scatter puts their gradients in.
        grad_NV = out[4] * dout[1].astype(logits_NV.dtype)
        if self.temperature != 1.0:
            grad_NV = grad_NV + out[5] * (dout[3] / self.temperature).astype(logits_NV.dtype)
        grad_NV = self.scatter_add(grad_NV, ids_NJ, dout[0].astype(logits_NV.dtype))
        return grad_NV, ops.zeros_like(ids_NJ), ops.zeros_like(penalty_NJ)


def log_add(a, b):
    """log(exp(a) + exp(b)) without overflow, or underflow of the larger."""
    top = ops.stop_gradient(ops.maximum(a, b))
    return top + ops.log(ops.exp(a - top) + ops.exp(b - top))


class CrossEntropyRows(nn.Cell):
    """construct(logits_NV f32, target_ids_N i32) -> ce_N f32, at temperature 1, for steps without a teacher.

    log_softmax and one gather, for speed: forward and backward on two cores 1.8 ms for [2048, 160], where SplitRows
    takes 2.5 and `ops.cross_entropy` 5.8. The price is an absolute error of up to 4e-6 in loss and gradient.
    """

    def construct(self, logits_NV, target_ids_N):
        log_q_NV = ops.log_softmax(logits_NV, -1)
        return -ops.gather_elements(log_q_NV, 1, target_ids_N.reshape((-1, 1))).reshape((-1,))


def far_like(ids):
    """FAR in float32, in the shape of `ids`. (`zeros_like` does not compile in a Cell that has its own bprop.)"""
    return (ids * 0).astype(ms.float32) + FAR


class ComposedTopkDistill(nn.Cell):
    """`topk_distill` from plain operators, differentiable with respect to the logits.

    construct(logits_NV f32, target_ids_N i32, teacher_ids_NK i32, teacher_logp_NK f32, teacher_tail_logp_N f32) ->
    (ce_N, kd_N, diagnostics_4N), all f32. `ce_N` is at temperature 1, `kd_N` carries T^2 once; `diagnostics_4N` holds
    teacher entropy, teacher mass and student mass on the K ids, and top-1 agreement, without a gradient. Log-masses are
    those of the store, at T. A teacher id of -1 pads K; ids are below V and differ within a row.
    """

    def __init__(self, divergence: str, support: str, temperature: float):
        super().__init__()
        if divergence != "forward_kl" and support not in ("tail_bucket", "renormalised"):
            raise ValueError(f"{divergence} is not defined on {support}")
        self.divergence, self.support, self.temperature = divergence, support, float(temperature)
        self.wide = wide_dtype()
        self.split = SplitRows(self.temperature)

    def construct(self, logits_NV, target_ids_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N):
        valid_NK = teacher_ids_NK >= 0
        label_ids_N1 = target_ids_N.reshape((-1, 1))
        ids_NK = ops.select(valid_NK, teacher_ids_NK, ops.zeros_like(teacher_ids_NK))
        far_NK = far_like(ids_NK)
        log_p_NK = ops.select(valid_NK, teacher_logp_NK, far_NK).astype(self.wide)
        log_p_tail_N1 = teacher_tail_logp_N.reshape((-1, 1)).astype(self.wide)

        penalty_NK = ops.select(valid_NK, far_NK, ops.zeros_like(far_NK))
        chosen_NJ, rest_N1, rest_max_N1, cool_rest_N1, _, _ = self.split(
            logits_NV,
            ops.concat((label_ids_N1, ids_NK), 1),
            ops.concat((far_like(label_ids_N1), penalty_NK), 1),
        )
        far_NK = far_NK.astype(self.wide)
        support_NK = ops.select(valid_NK, chosen_NJ[:, 1:], far_NK)
        rest_max_N1 = ops.stop_gradient(rest_max_N1)
        row_max_N1 = ops.maximum(rest_max_N1, ops.stop_gradient(chosen_NJ[:, :1]))
        row_max_N1 = ops.maximum(row_max_N1, ops.stop_gradient(support_NK.max(axis=1, keepdims=True)))

        # From here on logits are relative to the row's largest one. A label inside the support is read there and not
        # counted twice: its gradient q - 1 is then one number, not two that are rounded apart.
        z_NK = support_NK - row_max_N1
        same_NK = teacher_ids_NK == label_ids_N1
        inside_N1 = same_NK.astype(ms.float32).max(axis=1, keepdims=True) > 0
        lone_label_N1 = ops.select(inside_N1, far_NK[:, :1], chosen_NJ[:, :1] - row_max_N1)
        label_in_NK = ops.select(same_NK, z_NK, ops.zeros_like(z_NK)).sum(axis=1, keepdims=True)
        label_N1 = ops.select(inside_N1, label_in_NK, lone_label_N1)
        log_tail_N1 = log_add(rest_N1 + (rest_max_N1 - row_max_N1), lone_label_N1)
        log_norm_N1 = log_add(log_tail_N1, log_sum_exp(z_NK))
        ce_N1 = log_norm_N1 - label_N1
        if self.temperature != 1.0:
            z_NK = z_NK / self.temperature
            log_tail_N1 = log_add(
                cool_rest_N1 + (rest_max_N1 - row_max_N1) / self.temperature, lone_label_N1 / self.temperature
            )
            log_norm_N1 = log_add(log_tail_N1, log_sum_exp(z_NK))
        log_q_NK, log_q_tail_N1 = z_NK - log_norm_N1, log_tail_N1 - log_norm_N1

        if self.support == "renormalised":
            kd_N1 = self._diverge(log_p_NK - log_sum_exp(log_p_NK), z_NK - log_sum_exp(z_NK))
        else:
            kd_N1 = self._diverge(log_p_NK, log_q_NK)
        if self.support == "tail_bucket":
            if teacher_ids_NK.shape[1] >= logits_NV.shape[1]:
                log_p_tail_N1, log_q_tail_N1 = self._drop_empty_tail(valid_NK, logits_NV, log_p_tail_N1, log_q_tail_N1)
            kd_N1 = kd_N1 + self._diverge(log_p_tail_N1, log_q_tail_N1)
        diagnostics_4N = self._diagnose(log_p_NK, log_p_tail_N1, log_q_NK, support_NK, row_max_N1)
        ce_N = ce_N1.reshape((-1,)).astype(ms.float32)
        kd_N = (self.temperature**2 * kd_N1).reshape((-1,)).astype(ms.float32)
        return ce_N, kd_N, ops.stop_gradient(diagnostics_4N)

    def _drop_empty_tail(self, valid_NK, logits_NV, log_p_tail_N1, log_q_tail_N1):
        """Give a row whose support is the whole vocabulary a tail of mass 0 on both sides."""
        some_N1 = valid_NK.astype(ms.int32).sum(axis=1, keepdims=True) < logits_NV.shape[1]
        far_N1 = ops.full_like(log_p_tail_N1, FAR)
        return ops.select(some_N1, log_p_tail_N1, far_N1), ops.select(some_N1, log_q_tail_N1, far_N1)

    def _diverge(self, log_p, log_q):
        """The buckets' contributions to D, summed over the last axis (kept)."""
        p = ops.exp(log_p)
        if self.divergence == "forward_kl":
            parts = p * (log_p - log_q)
        elif self.divergence == "reverse_kl":
            parts = ops.exp(log_q) * (log_q - log_p)
        else:
            q = ops.exp(log_q)
            log_m = ops.log(ops.maximum(0.5 * (p + q), SMALLEST))
            parts = 0.5 * (p * (log_p - log_m) + q * (log_q - log_m))
        return parts.sum(axis=1, keepdims=True)

    def _diagnose(self, log_p_NK, log_p_tail_N1, log_q_NK, support_NK, row_max_N1):
        p_NK = ops.exp(log_p_NK)
        entropy_N = -(p_NK * log_p_NK).sum(axis=1) - (ops.exp(log_p_tail_N1) * log_p_tail_N1).reshape((-1,))
        # They agree when the student's logit at the teacher's first id is the largest of the row: no argmax over V.
        first_NK = log_p_NK >= log_p_NK.max(axis=1, keepdims=True)
        at_first_N1 = ops.select(first_NK, support_NK, ops.full_like(support_NK, FAR)).max(axis=1, keepdims=True)
        agreement_N = (at_first_N1 >= row_max_N1).astype(self.wide).reshape((-1,))
        return ops.stack((entropy_N, p_NK.sum(axis=1), ops.exp(log_q_NK).sum(axis=1), agreement_N)).astype(ms.float32)


def log_sum_exp(x_NK):
    """log of the sum of exp over the last axis of K entries (kept), where FAR marks padding."""
    top_N1 = ops.stop_gradient(x_NK.max(axis=1, keepdims=True))
    return top_N1 + ops.log(ops.exp(x_NK - top_N1).sum(axis=1, keepdims=True))


BACKENDS = {"composed": ComposedTopkDistill}
