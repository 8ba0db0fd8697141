"""Gradients that are accumulated over chunks of tokens without copies: c_VD += a_NV^T b_ND, and c *= s, in place.

A [V, D] gradient of the 1B model is 0.94 GB in float32; a plain `c + matmul(a, b)` holds three of them at once.
Backends are those of `ops/topk_distill.py`: on Ascend the vendor's fused operators, on the CPU the native ones, else
plain operators with their copies.
"""

import mindspore as ms
from mindspore import nn, ops

from mindspore_impl import runtime
from mindspore_impl.ops import native


def _backend() -> str:
    if runtime.device() == "Ascend":
        return "ascend"
    return "cpu" if runtime.kernels() != "composed" and native.library() else "composed"


def outer_product(backend_name: str | None = None) -> nn.Cell:
    """construct(a_NV, b_ND) -> c_VD f32 = a^T b: the first chunk."""
    name = backend_name or _backend()
    return CpuOuterProduct() if name == "cpu" else ComposedOuterProduct()


def add_outer_product(backend_name: str | None = None) -> nn.Cell:
    """construct(a_NV, b_ND, c_VD f32) -> c + a^T b, in c's memory where the backend can; c must not be read again."""
    return {"cpu": CpuAddOuterProduct, "ascend": AscendAddOuterProduct, "composed": ComposedAddOuterProduct}[
        backend_name or _backend()
    ]()


def scale(backend_name: str | None = None) -> nn.Cell:
    """construct(c, s f32 scalar) -> c * s, in c's memory where the backend can; c must not be read again."""
    return {"cpu": CpuScale, "ascend": AscendScale, "composed": ComposedScale}[backend_name or _backend()]()


class ComposedOuterProduct(nn.Cell):
    """`outer_product` by one MatMul."""

    def __init__(self):
        super().__init__()
        self.matmul = ops.MatMul(transpose_a=True)

    def construct(self, a_NV, b_ND):
        return self.matmul(a_NV, b_ND).astype(ms.float32)


class ComposedAddOuterProduct(nn.Cell):
    """`add_outer_product` with two temporary [V, D]."""

    def __init__(self):
        super().__init__()
        self.product = ComposedOuterProduct()

    def construct(self, a_NV, b_ND, c_VD):
        return c_VD + self.product(a_NV, b_ND)


class ComposedScale(nn.Cell):
    """`scale` into new memory."""

    def construct(self, c, s):
        return c * s


def _token_shape(*_):
    return (1,)


def _token_dtype(*_):
    return ms.float32


class CpuOuterProduct(nn.Cell):
    """`outer_product` by kernels/cpu."""

    def __init__(self):
        super().__init__()

        def shape(a_NV, b_ND):
            return a_NV[1], b_ND[1]

        self.run = ops.Custom(native.operator("OuterProduct"), shape, _token_dtype, func_type="aot")

    def construct(self, a_NV, b_ND):
        return self.run(a_NV, b_ND)


class CpuAddOuterProduct(nn.Cell):
    """`add_outer_product` by kernels/cpu, in place: `depend` orders its readers after it."""

    def __init__(self):
        super().__init__()
        self.run = ops.Custom(native.operator("AddOuterProduct"), _token_shape, _token_dtype, func_type="aot")

    def construct(self, a_NV, b_ND, c_VD):
        return ops.depend(c_VD, self.run(a_NV, b_ND, c_VD))


class CpuScale(nn.Cell):
    """`scale` by kernels/cpu, in place; a scale of 1 touches nothing."""

    def __init__(self):
        super().__init__()
        self.run = ops.Custom(native.operator("ScaleInPlace"), _token_shape, _token_dtype, func_type="aot")

    def construct(self, c, s):
        return ops.depend(c, self.run(c, s.reshape((1,))))


class AscendAddOuterProduct(nn.Cell):
    """`ops.matmul_add_` (graph mode, 16-bit factors, a float32 sum); plain operators for float32 factors."""

    def __init__(self):
        super().__init__()
        self.composed = ComposedAddOuterProduct()

    def construct(self, a_NV, b_ND, c_VD):
        if a_NV.dtype == ms.float32:
            return self.composed(a_NV, b_ND, c_VD)
        return ops.depend(c_VD, ops.auto_generate.inplace_matmul_add_op(a_NV, b_ND, c_VD))


class AscendScale(nn.Cell):
    """`scale` by the vendor's in-place product."""

    def construct(self, c, s):
        return ops.depend(c, ops.auto_generate.inplace_mul_op(c, s))
