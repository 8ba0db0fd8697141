"""The output projection and the objective in one Cell, so that the logits of all tokens never exist at once.

Chunks of as many rows as `runtime.logits_mb` holds logits for are projected; the distillation operator turns logits
into their gradient, which goes at once into the gradients of hidden states and lm_head; the backward pass scales these.
On the CPU one native operator does it all; elsewhere the chunks are a loop in the graph. Legend: N tokens, n rows of a
chunk, D hidden, V vocabulary, K teacher ids.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindspore_impl import runtime
from mindspore_impl.losses.divergences import for_operator, runs_composed
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import ce_weight
from mindspore_impl.ops.accumulate import OuterProduct, add_outer_product, scale
from mindspore_impl.ops.linear_distill import linear_distill
from mindspore_impl.ops.topk_distill import backend, cross_entropy, kernel_codes, no_teacher, topk_distill


class Projection(nn.Cell):
    """construct(hidden_ND, lm_head_VD) -> logits_NV, in the compute dtype."""

    def __init__(self):
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)
        self.dtype = runtime.compute_dtype()

    def construct(self, hidden_ND, lm_head_VD):
        return self.matmul(ops.cast(hidden_ND, self.dtype), ops.cast(lm_head_VD, self.dtype))


def row_operator(options: ObjectiveOptions, with_teacher: bool, gradient: bool) -> nn.Cell:
    """The operator of one objective as in `ops/topk_distill.py`; without a teacher kd and diagnostics are 0."""
    if not with_teacher:
        return cross_entropy(ce_weight(options), gradient)
    weights = ce_weight(options), options.kd_weight
    return topk_distill(for_operator(options.divergence), options.support, options.temperature, *weights, gradient)


def _joined(parts, axis: int):
    return parts[0] if len(parts) == 1 else ops.Concat(axis)(parts)


class ChunkLoop(nn.Cell):
    """The chunks as a loop in the graph.

    construct(hidden_ND, lm_head_VD, target_ids_N, row_weight_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N)
    -> (ce_N, kd_N, diagnostics_4N[, hidden_grad_ND[, lm_head_grad_VD f32]]).

    rows: as `row_operator` gives; `gradient`: it has the gradient among its outputs.
    """

    def __init__(self, rows: nn.Cell, gradient: bool, head_gradient: bool):
        super().__init__()
        self.gradient, self.head_gradient = gradient, head_gradient
        self.project = Projection()
        self.rows = rows
        self.matmul = ops.MatMul()
        self.start, self.add = OuterProduct(), add_outer_product()
        self.compute_dtype = runtime.compute_dtype()
        self.budget = runtime.logits_elements()

    def construct(
        self, hidden_ND, lm_head_VD, target_ids_N, row_weight_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N
    ):
        count = hidden_ND.shape[0]
        size = max(1, self.budget // lm_head_VD.shape[0])
        weight_VD = ops.cast(lm_head_VD, self.compute_dtype)
        ce, kd, diagnostics, hidden_grads, weight_grad_VD = (), (), (), (), None
        done = row_weight_N
        for first in range(0, count, size):
            last = min(first + size, count)
            # One chunk after the other: unordered, all are projected first, and all logits exist at once.
            hidden_nD = ops.cast(ops.depend(hidden_ND, done)[first:last], self.compute_dtype)
            found = self.rows(
                self.project(hidden_nD, weight_VD), target_ids_N[first:last], row_weight_N[first:last],
                teacher_ids_NK[first:last], teacher_logp_NK[first:last], teacher_tail_logp_N[first:last],
            )  # fmt: skip
            ce, kd, diagnostics = ce + (found[0],), kd + (found[1],), diagnostics + (found[2],)
            done = found[0], found[1]
            if self.gradient:
                grad_nV = found[3]
                hidden_grads = hidden_grads + (self.matmul(grad_nV, weight_VD),)
                done = hidden_grads[-1]
            if self.head_gradient:
                if first == 0:
                    weight_grad_VD = self.start(grad_nV, hidden_nD)
                else:
                    weight_grad_VD = self.add(grad_nV, hidden_nD, weight_grad_VD)
                done = done, weight_grad_VD
        outputs = _joined(ce, 0), _joined(kd, 0), _joined(diagnostics, 1)
        if self.gradient:
            outputs = outputs + (ops.cast(_joined(hidden_grads, 0), hidden_ND.dtype),)
        if self.head_gradient:
            outputs = outputs + (weight_grad_VD,)
        return outputs


class _NativeChunks(nn.Cell):
    """`ChunkLoop` as one operator of kernels/cpu."""

    def __init__(self, options: ObjectiveOptions, with_teacher: bool, gradient: bool, head_gradient: bool):
        super().__init__()
        self.run = linear_distill(gradient, head_gradient)
        kind = kernel_codes(options.divergence, options.support)
        weights = ce_weight(options), options.kd_weight if with_teacher else 0.0
        self.settings_6 = Tensor([*weights, options.temperature, *kind, runtime.logits_elements()], ms.float32)

    def construct(self, hidden_ND, lm_head_VD, target_ids_N, row_weight_N, *teacher):
        return self.run(hidden_ND, lm_head_VD, target_ids_N, *teacher, row_weight_N, self.settings_6)


class FusedLinear(nn.Cell):
    """Loss of hidden states and an output projection, without the logits of all rows at once.

    construct(hidden_ND, lm_head_VD f32, target_ids_N i32, row_weight_N f32, teacher_ids_NK i32, teacher_logp_NK,
    teacher_tail_logp_N f32) -> (loss f32 scalar, ce_N, kd_N, diagnostics_4N, gradients for the backward pass...).

    loss = sum(row_weight * (ce_weight * ce + kd_weight * kd)) is differentiable with respect to hidden_ND and, where
    `head_gradient`, lm_head_VD. Without a teacher its inputs are not read; `gradient` False (evaluation) computes the
    losses alone. chunks: a Cell as ChunkLoop, of the same settings, in place of the device's own.
    """

    def __init__(
        self,
        options: ObjectiveOptions,
        with_teacher: bool,
        gradient: bool = True,
        head_gradient: bool = True,
        chunks: nn.Cell | None = None,
    ):
        super().__init__()
        self.ce_weight, self.kd_weight = float(ce_weight(options)), float(options.kd_weight)
        self.with_teacher, self.head_gradient = with_teacher, gradient and head_gradient
        if chunks is not None:
            self.chunks = chunks
        elif backend() == "cpu" and not (with_teacher and runs_composed(options.divergence)):
            self.chunks = _NativeChunks(options, with_teacher, gradient, self.head_gradient)
        else:
            self.chunks = ChunkLoop(row_operator(options, with_teacher, gradient), gradient, self.head_gradient)
        self.scale = scale()

    def construct(
        self, hidden_ND, lm_head_VD, target_ids_N, row_weight_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N
    ):
        teacher = teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N
        if not self.with_teacher:
            teacher = no_teacher(target_ids_N, row_weight_N)
        outputs = self.chunks(hidden_ND, lm_head_VD, target_ids_N, row_weight_N, *teacher)
        loss = (row_weight_N * (self.ce_weight * outputs[0] + self.kd_weight * outputs[1])).sum()
        return (loss,) + outputs

    def bprop(
        self, hidden_ND, lm_head_VD, target_ids_N, row_weight_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N,
        out, dout,
    ):  # fmt: skip
        hidden_grad_ND = self.scale(out[4], ops.cast(dout[0], out[4].dtype))
        weight_grad_VD = self.scale(out[5], dout[0]) if self.head_gradient else ops.zeros_like(lm_head_VD)
        return (
            hidden_grad_ND, weight_grad_VD, ops.zeros_like(target_ids_N), ops.zeros_like(row_weight_N),
            ops.zeros_like(teacher_ids_NK), ops.zeros_like(teacher_logp_NK), ops.zeros_like(teacher_tail_logp_N),
        )  # fmt: skip
