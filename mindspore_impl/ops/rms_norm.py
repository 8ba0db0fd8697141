"""RMS normalisation: y = x / sqrt(mean(x^2) + eps) * weight. Legend: N tokens, D hidden."""

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindspore_impl import runtime


def make_rms_norm(size: int, eps: float) -> nn.Cell:
    """Return a Cell (x_ND, weight_D float32) -> y_ND in x's dtype; the statistics are computed in float32."""
    return _AscendRmsNorm(eps) if runtime.device() == "Ascend" else _ComposedRmsNorm(size, eps)


class _AscendRmsNorm(nn.Cell):
    """`ops.rms_norm`: x and gamma share a dtype, the kernel sums in float32; the second output serves its gradient."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def construct(self, x_ND, weight_D):
        return ops.rms_norm(x_ND, ops.cast(weight_D, x_ND.dtype), self.eps)[0]


class _ComposedRmsNorm(nn.Cell):
    """Matrix products instead of a row mean and two broadcasts: on the CPU half the cost, gradients included."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.mean_D1 = Tensor(np.full((size, 1), 1.0 / size, np.float32))
        self.matmul = ops.MatMul()
        self.square = ops.Square()
        self.rsqrt = ops.Rsqrt()
        self.reshape = ops.Reshape()
        self.row = (1, size)

    def construct(self, x_ND, weight_D):
        x32_ND = ops.cast(x_ND, mstype.float32)
        scale_N1 = self.rsqrt(self.matmul(self.square(x32_ND), self.mean_D1) + self.eps)
        y_ND = x32_ND * self.matmul(scale_N1, self.reshape(weight_D, self.row))
        return ops.cast(y_ND, x_ND.dtype)
