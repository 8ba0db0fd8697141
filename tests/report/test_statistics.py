"""Statistics over seeds against published and independently computed values."""

import math

import pytest

from mindspore_impl.report.statistics import paired_difference, spread


def test_student_1908():
    """The sleep data that the paired t test was introduced with."""
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    reference = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = paired_difference(one, reference)
    assert found["n"] == 10
    assert found["mean"] == pytest.approx(-1.58)
    assert found["deviation"] == pytest.approx(1.229995, abs=1e-6)
    assert (found["low"], found["high"]) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)
    assert found["p"] == pytest.approx(0.00283289, abs=1e-8)


# Published 97.5 % quantiles of Student's t.
def test_intervals_use_the_t_quantile():
    for n, quantile in ((2, 12.7062), (3, 4.30265), (5, 2.77645), (31, 2.04227), (101, 1.98397)):
        found = spread([float(i % 2) for i in range(n)])
        assert found["high"] - found["mean"] == pytest.approx(quantile * found["deviation"] / math.sqrt(n), rel=1e-5), n


def test_few_and_equal_pairs():
    single = paired_difference([0.5], [0.4])
    assert single["mean"] == pytest.approx(0.1)
    assert single["deviation"] is single["low"] is single["high"] is single["p"] is None
    same = paired_difference([0.5, 0.75], [0.25, 0.5])
    assert (same["low"], same["high"], same["p"]) == (0.25, 0.25, None), "no test without a spread"
    assert spread([1, 2, 6])["mean"] == 3
    assert spread([1, 2, 6])["deviation"] == pytest.approx(7**0.5)
    with pytest.raises(ValueError, match="shorter|longer"):
        paired_difference([1.0], [1.0, 2.0])
