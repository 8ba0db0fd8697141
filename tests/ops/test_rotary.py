import numpy as np
import pytest

from tests.model.pangu_reference import rotate
from tests.ops.ascend_recorder import ascend  # noqa: F401

POSITIONS = np.array([0, 1, 5, 2, 31, 9], np.int32)


def _apply(theta=10000.0, width=8):
    from mindspore import Tensor

    from mindspore_impl.ops.rotary import make_rotary, rotary_table

    generator = np.random.default_rng(0)
    query, key = (generator.standard_normal((6, heads, width)).astype(np.float32) for heads in (4, 2))
    cos, sin = rotary_table(width, theta, 32)
    spread, apply = make_rotary(4, 2, width)
    found = apply(Tensor(query), Tensor(key), spread(Tensor(cos[POSITIONS]), Tensor(sin[POSITIONS])))
    return [tensor.asnumpy() for tensor in found], [rotate(x, POSITIONS, theta) for x in (query, key)]


@pytest.mark.parametrize("width", [2, 10])
def test_composed_rotates_halves(ms_runtime, width):
    for found, expected in zip(*_apply(width=width), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_ascend_call(ascend):  # noqa: F811
    for found, expected in zip(*_apply(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert ascend["rotary"] == [{"x": (1, 6, 4, 8), "mode": 0}, {"x": (1, 6, 2, 8), "mode": 0}]


@pytest.mark.parametrize("theta", [4e6, 1.6e7])
def test_table_is_exact_to_float32_at_the_last_position(theta):
    from decimal import Decimal, getcontext

    from mindspore_impl.ops.rotary import rotary_table

    getcontext().prec = 40
    cos, sin = rotary_table(128, theta, 32768)
    assert cos.dtype == np.float32 and cos.shape == sin.shape == (32768, 128)
    turn = 2 * Decimal("3.1415926535897932384626433832795028841971")
    for pair in (0, 1, 17, 63):
        angle = Decimal(32767) * Decimal(theta) ** (Decimal(-2 * pair) / 128)
        angle = float(angle % turn)
        for column in (pair, pair + 64):
            np.testing.assert_allclose([cos[-1, column], sin[-1, column]], [np.cos(angle), np.sin(angle)], atol=1e-7)
