"""The output projection and the objective in one Cell: hidden_ND @ lm_head_VD^T, then the losses of each row.

Logits exist nowhere else in training. A chunked or fused version, which never holds all of [N, V], replaces these
Cells and keeps their signatures. Legend: N tokens, D hidden, V vocabulary, K teacher ids.
"""

import mindspore as ms
from mindspore import nn, ops

from mindspore_impl import runtime
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.ops.topk_distill import CrossEntropyRows, topk_distill


class Projection(nn.Cell):
    """construct(hidden_ND, lm_head_VD f32) -> logits_NV f32; the product is in the compute dtype."""

    def __init__(self):
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)
        self.dtype = runtime.compute_dtype()

    def construct(self, hidden_ND, lm_head_VD):
        logits_NV = self.matmul(ops.cast(hidden_ND, self.dtype), ops.cast(lm_head_VD, self.dtype))
        return ops.cast(logits_NV, ms.float32)


class FusedLinearCrossEntropy(nn.Cell):
    """construct(hidden_ND, lm_head_VD, target_ids_N) -> ce_N f32."""

    def __init__(self):
        super().__init__()
        self.project = Projection()
        self.cross_entropy = CrossEntropyRows()

    def construct(self, hidden_ND, lm_head_VD, target_ids_N):
        return self.cross_entropy(self.project(hidden_ND, lm_head_VD), target_ids_N)


class FusedLinearDistill(nn.Cell):
    """construct(hidden_ND, lm_head_VD, target_ids_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N) ->
    (ce_N, kd_N, diagnostics_4N) as `ops/topk_distill.py` defines them."""

    def __init__(self, options: ObjectiveOptions):
        super().__init__()
        self.project = Projection()
        self.distill = topk_distill(options.divergence, options.support, options.temperature)

    def construct(self, hidden_ND, lm_head_VD, target_ids_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N):
        logits_NV = self.project(hidden_ND, lm_head_VD)
        return self.distill(logits_NV, target_ids_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N)
