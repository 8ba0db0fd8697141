"""The product of a linear layer, in both of its forms."""

import numpy as np
import pytest


@pytest.mark.parametrize("rows", [1, 9, 10, 64, 65])
def test_product_and_gradient_equal_numpy(ms_runtime, rows):
    from mindspore import Tensor, grad

    from mindspore_impl.ops.linear import make_product

    draw = np.random.default_rng(rows)
    x_NI, weight_OI, dy_NO = (draw.normal(size=s).astype(np.float32) for s in ((rows, 24), (7, 24), (rows, 7)))
    product = make_product()
    np.testing.assert_allclose(product(Tensor(x_NI), Tensor(weight_OI)).asnumpy(), x_NI @ weight_OI.T, atol=1e-5)

    def weighted(x_NI, weight_OI):
        return (product(x_NI, weight_OI) * Tensor(dy_NO)).sum()

    dx_NI, dweight_OI = grad(weighted, (0, 1))(Tensor(x_NI), Tensor(weight_OI))
    np.testing.assert_allclose(dx_NI.asnumpy(), dy_NO @ weight_OI, atol=1e-5)
    np.testing.assert_allclose(dweight_OI.asnumpy(), dy_NO.T @ x_NI, atol=1e-4)
