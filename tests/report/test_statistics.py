"""Statistics over seeds against published and independently computed values."""

import pytest

from mindspore_impl.report.statistics import T_975, deviation, mean, paired_difference


def test_student_1908():
    """The sleep data that the paired t test was introduced with."""
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    reference = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = paired_difference(one, reference)
    assert found["n"] == 10 and found["mean"] == pytest.approx(-1.58)
    assert found["deviation"] == pytest.approx(1.229995, abs=1e-6)
    assert (found["low"], found["high"]) == pytest.approx((-2.4598858, -0.7001142), abs=2e-4)


def test_quantiles():
    assert len(T_975) == 30
    stats = pytest.importorskip("scipy.stats")
    for degrees, value in enumerate(T_975, start=1):
        assert value == pytest.approx(stats.t.ppf(0.975, degrees), abs=6e-4)


def test_few_and_many_pairs():
    single = paired_difference([0.5], [0.4])
    assert single["mean"] == pytest.approx(0.1)
    assert single["deviation"] is single["low"] is single["high"] is None
    many = paired_difference([float(i % 2) for i in range(100)], [0.0] * 100)
    assert many["high"] - many["mean"] == pytest.approx(2.042 * deviation([float(i % 2) for i in range(100)]) / 10)
    assert mean([1, 2, 6]) == 3 and deviation([1, 2, 6]) == pytest.approx(7**0.5) and deviation([1]) is None
    with pytest.raises(ValueError):
        paired_difference([1.0], [1.0, 2.0])
