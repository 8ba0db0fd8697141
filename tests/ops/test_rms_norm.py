import numpy as np
import pytest

from tests.ops.ascend_recorder import ascend  # noqa: F401


def _reference(x, weight, eps):
    return x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + eps) * weight


def _inputs(rows, size, scale=1.0):
    generator = np.random.default_rng(rows)
    return [(scale * generator.standard_normal(shape)).astype(np.float32) for shape in ((rows, size), (size,))]


def _apply(eps, x, weight):
    from mindspore import Tensor

    from mindspore_impl.ops.rms_norm import make_rms_norm

    return make_rms_norm(x.shape[1], eps)(Tensor(x), Tensor(weight)).asnumpy()


@pytest.mark.parametrize(("rows", "size", "scale"), [(1, 4, 1.0), (5, 24, 1e-3), (7, 423, 30.0)])
def test_composed(ms_runtime, rows, size, scale):
    x, weight = _inputs(rows, size, scale)
    np.testing.assert_allclose(_apply(1e-5, x, weight), _reference(x, weight, 1e-5), rtol=2e-5, atol=1e-6)


def test_zero_row_is_finite(ms_runtime):
    assert (_apply(1e-5, np.zeros((2, 8), np.float32), np.ones(8, np.float32)) == 0).all()


def test_composed_gradients(ms_runtime):
    import mindspore as ms
    from mindspore import Tensor

    from mindspore_impl.ops.rms_norm import make_rms_norm

    x, weight = _inputs(3, 6)
    pull = np.random.default_rng(9).standard_normal(x.shape).astype(np.float32)
    cell = make_rms_norm(6, 1e-5)
    weight_of_output = Tensor(pull)

    def pulled(x_ND, weight_D):
        return (cell(x_ND, weight_D) * weight_of_output).sum()

    found = ms.grad(pulled, (0, 1))(Tensor(x), Tensor(weight))
    scale = 1 / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    dx = scale * weight * pull - x * scale**3 * (x * weight * pull).mean(-1, keepdims=True)
    np.testing.assert_allclose(found[0].asnumpy(), dx, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1].asnumpy(), (x * scale * pull).sum(0), rtol=1e-4, atol=1e-5)


def test_ascend_call(ascend):  # noqa: F811
    x, weight = _inputs(5, 16)
    np.testing.assert_allclose(_apply(3e-6, x, weight), _reference(x, weight, 3e-6), rtol=1e-5, atol=1e-6)
    assert ascend["rms_norm"] == {"x": (5, 16), "gamma": (16,), "epsilon": 3e-6}
