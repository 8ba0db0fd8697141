"""The product of a linear layer, x_NI weight_OI^T.

For SOME_ROWS rows, as in decoding a batch, the CPU takes a quarter to a half of the time for (weight_OI x_IN)^T.
Legend: N rows, I/O in and out features.
"""

from mindspore import nn, ops

from mindspore_impl import runtime

SOME_ROWS = (10, 64)  # the first and last count of rows that the turned form is faster for


def make_product() -> nn.Cell | ops.Primitive:
    """(x_NI, weight_OI) -> y_NO, in their dtype."""
    return ops.MatMul(transpose_b=True) if runtime.device() == "Ascend" else _CpuProduct()


class _CpuProduct(nn.Cell):
    """Of equal results up to the rounding of the sums."""

    def __init__(self):
        super().__init__()
        self.product, self.turned = ops.MatMul(transpose_b=True), ops.MatMul()
        self.transpose = ops.Transpose()

    def construct(self, x_NI, weight_OI):
        if SOME_ROWS[0] <= x_NI.shape[0] <= SOME_ROWS[1]:
            return self.transpose(self.turned(weight_OI, self.transpose(x_NI, (1, 0))), (1, 0))
        return self.product(x_NI, weight_OI)
