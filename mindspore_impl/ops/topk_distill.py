"""The distillation operator: cross-entropy, top-k divergence, diagnostics and gradient of [N, V] logits, row by row.

Shapes: N tokens, V vocabulary, K teacher ids a token. The mathematics is that of `losses/oracle.py`, which defines
every support and divergence. The gradient is worked out with the loss, so that the logits are dead afterwards: a fused
backend writes the gradient over them and holds no second [N, V] array. Backends, one signature, chosen by `backend()`:

    ascend    aclnnTopkDistillLoss, the Ascend C kernel of kernels/topk_distill_loss, where it is installed
    cpu       its twin in C++ (kernels/cpu)
    composed  plain operators (`ops/topk_distill_composed.py`), everywhere
"""

import os
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindspore_impl import runtime
from mindspore_impl.ops import native
from mindspore_impl.ops.divergence_codes import DIVERGENCES, SUPPORTS, supports_of
from mindspore_impl.ops.topk_distill_composed import ComposedCrossEntropy, ComposedTopkDistill

ASCEND_ATTRIBUTES = {"ce_weight": "float", "kd_weight": "float", "temperature": "float", "divergence": "int",
                     "support": "int", "write_gradient": "bool", "cores_a_row": "int"}  # fmt: skip
ACLNN, HEADER = "aclnnTopkDistillLoss", "aclnn_topk_distill_loss.h"


def backend() -> str:
    """The fastest backend that this device, its installed operators and runtime.kernels allow."""
    if runtime.kernels() == "composed":
        return "composed"
    if runtime.device() == "Ascend":
        return "ascend" if ascend_package() else "composed"
    return "cpu" if native.library() else "composed"


def ascend_package() -> Path | None:
    """The header of the installed Ascend operator: below ASCEND_CUSTOM_OPP_PATH, or among CANN's vendors."""
    folders = [Path(path) for path in os.environ.get("ASCEND_CUSTOM_OPP_PATH", "").split(":") if path]
    if opp := os.environ.get("ASCEND_OPP_PATH"):
        folders += sorted(Path(opp, "vendors").glob("*"))
    headers = (folder / "op_api" / "include" / HEADER for folder in folders)
    return next((header for header in headers if header.is_file()), None)


def topk_distill(
    divergence: str | nn.Cell,
    support: str,
    temperature: float,
    ce_weight: float,
    kd_weight: float,
    gradient: bool = True,
    backend_name: str | None = None,
) -> nn.Cell:
    """The operator for one objective.

    construct(logits_NV f32 | bf16 | f16, target_ids_N i32, row_weight_N f32, teacher_ids_NK i32, teacher_logp_NK f32,
    teacher_tail_logp_N f32) -> (ce_N, kd_N, diagnostics_4N f32[, grad_NV in the logits' dtype])

    `ce_N` is at temperature 1, `kd_N` carries T^2 once, neither a weight; `diagnostics_4N` holds teacher entropy,
    teacher mass and student mass on the K ids, and top-1 agreement. `grad_NV` is that of sum(row_weight * (ce_weight *
    ce + kd_weight * kd)); it is left out where `gradient` is False. Rows of weight 0 are exactly 0 in all outputs.
    With a gradient the logits must not be read afterwards: a fused backend has overwritten them. Log-masses are those
    of the store, at T. A teacher id of -1 pads K; ids are below V and differ within a row. Nothing is differentiable:
    the caller passes the gradient on (`losses/fused_linear.py`).

    Args:
        divergence: a built-in name, or a Cell as `losses/divergences.register_divergence` describes: then the backend
            is the composed one.
        support: which buckets the divergence sums over.
        temperature: T, of the divergence.
        ce_weight: factor of the cross-entropy.
        kd_weight: factor of the divergence.
        gradient: whether the gradient is computed.
        backend_name: instead of `backend()`.

    Raises ValueError for a divergence that is not defined on the support.
    """
    if isinstance(divergence, str) and divergence not in DIVERGENCES or support not in supports_of(divergence):
        raise ValueError(f"no divergence {divergence!r} on support {support!r}")
    name = backend_name or backend() if isinstance(divergence, str) else "composed"
    settings = (divergence, support, float(temperature), float(ce_weight), float(kd_weight), gradient)
    return {"composed": ComposedTopkDistill, "cpu": CpuTopkDistill, "ascend": AscendTopkDistill}[name](*settings)


def cross_entropy(ce_weight: float, gradient: bool = True, backend_name: str | None = None) -> nn.Cell:
    """The operator without a teacher: as `topk_distill`, for the teacher's inputs that `no_teacher` gives."""
    name = backend_name or backend()
    if name == "composed":
        return ComposedCrossEntropy(float(ce_weight), gradient)
    return topk_distill("forward_kl", "tail_bucket", 1.0, ce_weight, 0.0, gradient, name)


def kernel_codes(divergence: str, support: str) -> tuple[int, int]:
    """What the fused kernels take for the two names."""
    return DIVERGENCES.index(divergence), SUPPORTS.index(support)


def no_teacher(target_ids_N, row_weight_N):
    """-> teacher_ids_N1, teacher_logp_N1, teacher_tail_logp_N of no teacher: one padded id, all mass outside it."""
    zero_N = row_weight_N * 0
    return (target_ids_N * 0 - 1).reshape((-1, 1)), zero_N.reshape((-1, 1)), zero_N


def _output_shapes(logits_NV, target_ids_N, *_):
    count = target_ids_N[0]
    return (count,), (count,), (4, count)


class _Fused(nn.Cell):
    """What both fused backends share: the gradient is the logits' own memory, read after the operator has run."""

    gradient: bool

    def construct(self, logits_NV, target_ids_N, row_weight_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N):
        tensors = logits_NV, target_ids_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N, row_weight_N
        ce_N, kd_N, diagnostics_4N = self.launch(*tensors)
        if self.gradient:
            return ce_N, kd_N, diagnostics_4N, ops.depend(logits_NV, ce_N)
        return ce_N, kd_N, diagnostics_4N


class CpuTopkDistill(_Fused):
    """kernels/cpu through MindSpore's aot interface; the settings travel as a small tensor."""

    def __init__(self, divergence, support, temperature, ce_weight, kd_weight, gradient):
        super().__init__()
        self.gradient = gradient
        function = "TopkDistillLoss" if gradient else "TopkDistillLossForward"
        self.run = ops.Custom(native.operator(function), _output_shapes, (ms.float32,) * 3, func_type="aot")
        codes = kernel_codes(divergence, support)
        self.settings_5 = Tensor([ce_weight, kd_weight, temperature, *codes], ms.float32)

    def launch(self, *tensors):
        return self.run(*tensors, self.settings_5)


def ascend_registration() -> dict:
    """What MindSpore must know of the aclnn operator: the logits are an input that is written, so not an output too."""
    registration = ops.CustomRegOp(ACLNN)
    inputs = ("logits", "target_ids", "teacher_ids", "teacher_logp", "teacher_tail_logp", "row_weight")
    for number, name in enumerate(inputs):
        registration = registration.input(number, name, "required")
    for number, name in enumerate(("ce", "kd", "diagnostics")):
        registration = registration.output(number, name, "required")
    for name, kind in ASCEND_ATTRIBUTES.items():
        registration = registration.attr(name, "required", kind)
    integer, single = ops.DataType.I32_Default, ops.DataType.F32_Default
    for logits in (single, ops.DataType.F16_Default, ops.DataType.BF16_Default):
        registration = registration.dtype_format(logits, integer, integer, *[single] * 6)
    return registration.target("Ascend").get_op_info()


class AscendTopkDistill(_Fused):
    """The aclnn operator of kernels/topk_distill_loss; its attributes follow the tensors in the call."""

    def __init__(self, divergence, support, temperature, ce_weight, kd_weight, gradient):
        super().__init__()
        self.gradient = gradient
        codes = kernel_codes(divergence, support)
        self.attributes = (ce_weight, kd_weight, temperature, *codes, gradient, 0)  # 0: the tiling chooses cores a row
        self.run = ops.Custom(ACLNN, _output_shapes, (ms.float32,) * 3, func_type="aot", reg_info=ascend_registration())

    def launch(self, *tensors):
        return self.run(*tensors, *self.attributes)
