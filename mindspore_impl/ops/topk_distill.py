"""The distillation operator: cross-entropy, top-k divergence and diagnostics of [N, V] logits, row by row.

Shapes: N tokens, V vocabulary, K teacher ids a token, J = K + 1 (the label, then the teacher's ids). The mathematics is
that of `losses/oracle.py`, which defines every support and divergence; this file says how it is computed.

One backend exists: `composed`, plain MindSpore operators that have kernels on the CPU and on Ascend. `topk_distill` is
the only place that chooses; a fused backend is a Cell of the same signature, registered in `BACKENDS`.

How the composed backend keeps its digits in float32:
- the student's tail is a log-sum-exp over the logits with the support pushed to -1e30 (never 1 - sum, never -inf);
- logits are taken relative to the row's largest one before anything is rounded;
- at T = 1 the whole normaliser is put together from that tail and the K support logits, so the vocabulary is read once;
- what is K wide, and the normaliser, is float64 on the CPU, whose float32 exp is off by up to 8e-6.
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
    """construct(x_NV f32) -> (log_sum_N1, max_N1, q_NV): logsumexp(x) = max + log_sum, and the softmax.

    The first two are in `wide_dtype` and kept apart for their digits. Only `log_sum` carries a gradient (that of
    logsumexp as a whole, which is q): treat `max` and `q` as constants.
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

    def bprop(self, x_NV, out, dout):
        return (out[2] * dout[0].astype(x_NV.dtype),)


class CrossEntropyRows(nn.Cell):
    """construct(logits_NV f32, target_ids_N i32) -> ce_N f32, at temperature 1, for steps without a teacher.

    On the CPU, forward and backward, as fast as log_softmax + gather and 3 to 8 times faster than `ops.cross_entropy`.
    """

    def __init__(self):
        super().__init__()
        self.log_sum = RowLogSumExp()

    def construct(self, logits_NV, target_ids_N):
        log_sum_N1, max_N1, _ = self.log_sum(logits_NV)
        label_N1 = ops.gather_elements(logits_NV, 1, target_ids_N.reshape((-1, 1)))
        return (log_sum_N1 - (label_N1 - max_N1)).reshape((-1,)).astype(ms.float32)


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
        self.log_sum = RowLogSumExp()
        self.scatter_add = ops.TensorScatterElements(axis=1, reduction="add")

    def construct(self, logits_NV, target_ids_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N):
        valid_NK = teacher_ids_NK >= 0
        ids_NK = ops.select(valid_NK, teacher_ids_NK, ops.zeros_like(teacher_ids_NK))
        far_NK = ops.full_like(teacher_logp_NK, FAR)
        log_p_NK = ops.select(valid_NK, teacher_logp_NK, far_NK).astype(self.wide)
        log_p_tail_N1 = teacher_tail_logp_N.reshape((-1, 1)).astype(self.wide)
        # One gather for label and support: its gradient is one scatter into [N, V].
        chosen_NJ = ops.gather_elements(logits_NV, 1, ops.concat((target_ids_N.reshape((-1, 1)), ids_NK), 1))
        label_N1 = chosen_NJ[:, :1].astype(self.wide)
        support_NK = ops.select(valid_NK, chosen_NJ[:, 1:], far_NK).astype(self.wide)

        if self.support == "tail_bucket":
            penalty_NK = ops.select(valid_NK, far_NK, ops.zeros_like(far_NK))
            outside_NV = self.scatter_add(logits_NV, ids_NK, ops.stop_gradient(penalty_NK))
            log_q_NK, log_q_tail_N1, log_norm_N1, row_max_N1 = self._split(outside_NV, support_NK)
            ce_N1 = log_norm_N1 - (label_N1 - row_max_N1)
            if self.temperature != 1.0:
                log_q_NK, log_q_tail_N1, _, _ = self._split(
                    outside_NV / self.temperature, support_NK / self.temperature
                )
            if teacher_ids_NK.shape[1] >= logits_NV.shape[1]:
                log_p_tail_N1, log_q_tail_N1 = self._drop_empty_tail(valid_NK, logits_NV, log_p_tail_N1, log_q_tail_N1)
            kd_N1 = self._diverge(log_p_NK, log_q_NK) + self._diverge(log_p_tail_N1, log_q_tail_N1)
        else:
            log_norm_N1, row_max_N1, _ = self.log_sum(logits_NV)
            ce_N1 = log_norm_N1 - (label_N1 - row_max_N1)
            if self.temperature != 1.0:
                log_norm_N1, _, _ = self.log_sum(logits_NV / self.temperature)
            log_q_NK = (support_NK - row_max_N1) / self.temperature - log_norm_N1
            if self.support == "renormalised":
                kd_N1 = self._diverge(renormalise(log_p_NK), renormalise(support_NK / self.temperature))
            else:
                kd_N1 = self._diverge(log_p_NK, log_q_NK)
        diagnostics_4N = self._diagnose(log_p_NK, log_p_tail_N1, log_q_NK, support_NK, row_max_N1)
        ce_N = ce_N1.reshape((-1,)).astype(ms.float32)
        kd_N = (self.temperature**2 * kd_N1).reshape((-1,)).astype(ms.float32)
        return ce_N, kd_N, ops.stop_gradient(diagnostics_4N)

    def _split(self, outside_NV, support_NK):
        """Log-masses of the support and of the tail, the normaliser over the row's maximum, and that maximum."""
        log_tail_N1, tail_max_N1, _ = self.log_sum(outside_NV)
        tail_max_N1 = ops.stop_gradient(tail_max_N1)
        row_max_N1 = ops.maximum(tail_max_N1, ops.stop_gradient(support_NK.max(axis=1, keepdims=True)))
        log_tail_N1 = log_tail_N1 + (tail_max_N1 - row_max_N1)
        z_NK = support_NK - row_max_N1
        log_norm_N1 = ops.log(ops.exp(log_tail_N1) + ops.exp(z_NK).sum(axis=1, keepdims=True))
        return z_NK - log_norm_N1, log_tail_N1 - log_norm_N1, log_norm_N1, row_max_N1

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


def renormalise(x_NK):
    """Log-softmax over the last axis of K entries, where FAR marks padding."""
    z_NK = x_NK - ops.stop_gradient(x_NK.max(axis=1, keepdims=True))
    return z_NK - ops.log(ops.exp(z_NK).sum(axis=1, keepdims=True))


BACKENDS = {"composed": ComposedTopkDistill}
