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
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.core = _ScaledRows(size, eps)
        self.reshape = ops.Reshape()
        self.row = (1, size)

    def construct(self, x_ND, weight_D):
        y_ND = self.core(ops.cast(x_ND, mstype.float32), self.reshape(weight_D, self.row))[0]
        return ops.cast(y_ND, x_ND.dtype)


class _ScaledRows(nn.Cell):
    """The mathematics, returned with what its own backward pass needs.

    Row scales and weights are spread by an outer product and rows are summed by matrix products, because broadcasts and
    reductions are slow on the CPU: with its gradients this costs half of the plain form.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.mean_D1 = Tensor(np.full((size, 1), 1.0 / size, np.float32))
        self.negative_mean_1D = Tensor(np.full((1, size), -1.0 / size, np.float32))
        self.matmul = ops.MatMul()
        self.matmul_left = ops.MatMul(transpose_a=True)
        self.matmul_right = ops.MatMul(transpose_b=True)
        self.square = ops.Square()
        self.rsqrt = ops.Rsqrt()

    def construct(self, x_ND, weight_1D):
        scale_N1 = self.rsqrt(self.matmul(self.square(x_ND), self.mean_D1) + self.eps)
        factor_ND = self.matmul(scale_N1, weight_1D)
        return x_ND * factor_ND, scale_N1, factor_ND

    def bprop(self, x_ND, weight_1D, out, dout):
        _, scale_N1, factor_ND = out
        dy_ND = dout[0]
        product_ND = dy_ND * x_ND
        dot_N1 = self.matmul_right(product_ND, weight_1D) * (scale_N1 * scale_N1 * scale_N1)
        dx_ND = dy_ND * factor_ND + x_ND * self.matmul(dot_N1, self.negative_mean_1D)
        return dx_ND, self.matmul_left(scale_N1, product_ND)
