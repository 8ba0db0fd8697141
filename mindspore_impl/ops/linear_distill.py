"""Projection, distillation loss and all gradients as one native operator of kernels/cpu.

Legend: N tokens, D hidden, V vocabulary, K teacher ids. `ops/topk_distill.py` defines the loss of a row.
"""

import mindspore as ms
from mindspore import ops

from mindspore_impl.ops import native


def linear_distill(gradient: bool, head_gradient: bool) -> ops.Custom:
    """The operator; only where `topk_distill.backend()` is "cpu".

    (hidden_ND, lm_head_VD f32, target_ids_N, teacher_ids_NK i32, teacher_logp_NK, teacher_tail_logp_N, row_weight_N,
    settings_6 f32) -> (ce_N, kd_N, diagnostics_4N[, hidden_grad_ND[, lm_head_grad_VD]]), all f32

    settings_6: ce_weight, kd_weight, temperature, places of divergence and support, and how many logits may exist at
    once. Nothing is differentiable: the gradients are outputs.
    """
    outputs = 3 + gradient + (gradient and head_gradient)

    def shapes(hidden_ND, lm_head_VD, target_ids_N, *_):
        return (target_ids_N, target_ids_N, [4, *target_ids_N], hidden_ND, lm_head_VD)[:outputs]

    return ops.Custom(native.operator("FusedLinear"), shapes, (ms.float32,) * outputs, func_type="aot")
