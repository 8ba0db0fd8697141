"""Int8 weights: the bound of the rounding, and the cases at the edge of float32."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mindspore_impl.export.stored import quantise

WEIGHTS = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 7)), elements=st.floats(-1e4, 1e4, width=32))


@given(WEIGHTS)
def test_rounding_is_at_most_half_a_step(weight_OI):
    values_OI, scale_O1 = quantise(weight_OI)
    assert values_OI.dtype == np.int8 and scale_O1.shape == (len(weight_OI), 1)
    error_OI = np.abs(weight_OI.astype(np.float64) - values_OI * scale_O1.astype(np.float64))
    assert (error_OI <= scale_O1 * (0.5 + 1e-4)).all()


@given(WEIGHTS)
def test_a_second_rounding_changes_nothing(weight_OI):
    values_OI, scale_O1 = quantise(weight_OI)
    again_OI, _ = quantise(values_OI * scale_O1)
    np.testing.assert_array_equal(again_OI[scale_O1[:, 0] > 1e-30], values_OI[scale_O1[:, 0] > 1e-30])


def test_each_channel_has_its_own_scale_and_uses_all_levels():
    weight_OI = np.array([[1.0, -0.5], [-1000.0, 3.0]], np.float32)
    values_OI, scale_O1 = quantise(weight_OI)
    np.testing.assert_array_equal(values_OI, [[127, -64], [-127, 0]])
    np.testing.assert_allclose(scale_O1[:, 0], [1 / 127, 1000 / 127], rtol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38])
def test_channels_near_zero_stay_finite(size):
    weight_OI = np.full((2, 3), size, np.float32)
    values_OI, scale_O1 = quantise(weight_OI)
    assert np.isfinite(values_OI * scale_O1).all() and (scale_O1 > 0).all()
    np.testing.assert_allclose(values_OI * scale_O1, weight_OI, atol=1e-38)
