"""The Wilson interval against published values, and its behaviour at the borders."""

import pytest

from mindspore_impl.evaluation.scoring import wilson_interval


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(total - correct, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_borders():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 7)[0] == 0.0 and wilson_interval(7, 7)[1] == 1.0
    for correct in range(8):
        low, high = wilson_interval(correct, 7)
        assert 0 <= low <= correct / 7 <= high <= 1 and low < high
    with pytest.raises(ValueError, match="8"):
        wilson_interval(8, 7)
