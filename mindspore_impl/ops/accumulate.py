"""Gradients that are added up over chunks of tokens, and scaled, in place: c_VD += a_nV^T b_nD, and c *= s.

In place since a [V, D] gradient of the 1B model is 0.94 GB, and a plain `c + matmul(a, b)` holds three at once; plain
operators where the device cannot. Legend: n rows of a chunk, V vocabulary, D hidden.
"""

import mindspore as ms
from mindspore import nn, ops

from mindspore_impl import runtime
from mindspore_impl.ops import native


def add_outer_product() -> nn.Cell:
    """construct(a_nV, b_nD, c_VD f32) -> c + a^T b, in c's memory where the device can; c must not be read again."""
    return AscendAddOuterProduct() if runtime.device() == "Ascend" else ComposedAddOuterProduct()


def scale() -> nn.Cell | ops.Primitive:
    """construct(c, s f32 scalar) -> c * s, in c's memory where the device can; c must not be read again."""
    if runtime.device() == "Ascend":
        return AscendScale()
    return CpuScale() if runtime.kernels() != "composed" and native.library() else ops.Mul()


class OuterProduct(nn.Cell):
    """construct(a_nV, b_nD) -> c_VD f32 = a^T b: the first chunk."""

    def __init__(self):
        super().__init__()
        self.matmul = ops.MatMul(transpose_a=True)

    def construct(self, a_nV, b_nD):
        return self.matmul(a_nV, b_nD).astype(ms.float32)


class ComposedAddOuterProduct(nn.Cell):
    """`add_outer_product` with two temporary [V, D]."""

    def __init__(self):
        super().__init__()
        self.product = OuterProduct()

    def construct(self, a_nV, b_nD, c_VD):
        return c_VD + self.product(a_nV, b_nD)


class AscendAddOuterProduct(nn.Cell):
    """`ops.matmul_add_` (graph mode, 16-bit factors, a float32 sum); plain operators for float32 factors."""

    def __init__(self):
        super().__init__()
        self.composed = ComposedAddOuterProduct()

    def construct(self, a_nV, b_nD, c_VD):
        if a_nV.dtype == ms.float32:
            return self.composed(a_nV, b_nD, c_VD)
        return ops.depend(c_VD, ops.auto_generate.inplace_matmul_add_op(a_nV, b_nD, c_VD))


class CpuScale(nn.Cell):
    """`scale` by kernels/cpu: `depend` orders its readers after it; a scale of 1 touches nothing."""

    def __init__(self):
        super().__init__()
        self.run = ops.Custom(native.operator("ScaleInPlace"), (1,), ms.float32, func_type="aot")

    def construct(self, c, s):
        return ops.depend(c, self.run(c, s.reshape((1,))))


class AscendScale(nn.Cell):
    """`scale` by the vendor's in-place product."""

    def construct(self, c, s):
        return ops.depend(c, ops.auto_generate.inplace_mul_op(c, s))
