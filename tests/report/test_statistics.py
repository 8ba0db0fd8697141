"""Statistics over seeds against published and independently computed values."""

import math

import pytest

from mindspore_impl.report.statistics import deviation, mean, paired_difference, spread, t_quantile, t_test_p


def test_student_1908():
    """The sleep data that the paired t test was introduced with."""
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    reference = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = paired_difference(one, reference)
    assert found["n"] == 10 and found["mean"] == pytest.approx(-1.58)
    assert found["deviation"] == pytest.approx(1.229995, abs=1e-6)
    assert (found["low"], found["high"]) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)
    assert found["p"] == pytest.approx(0.00283289, abs=1e-8)


# Published tables: two-sided p of t. One and two degrees of freedom have closed forms.
@pytest.mark.parametrize(
    ("degrees", "t", "p"),
    [(1, 12.706, 0.05), (1, 63.657, 0.01), (4, 2.776, 0.05), (4, 4.604, 0.01), (4, 8.610, 0.001), (9, 2.262, 0.05),
     (30, 2.042, 0.05), (30, 3.646, 0.001), (120, 1.980, 0.05), (4, 0.741, 0.5), (4, 0.0, 1.0)],
)  # fmt: skip
def test_p_values_of_published_tables(degrees, t, p):
    assert t_test_p(t, degrees) == t_test_p(-t, degrees) == pytest.approx(p, rel=1e-3)


@pytest.mark.parametrize("t", [0.01, 0.7, 1.0, 3.0, 40.0, 1e4])
def test_closed_forms(t):
    assert t_test_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, rel=1e-9, abs=1e-15)
    root = math.sqrt(t * t + 2)
    assert t_test_p(t, 2) == pytest.approx(2 / (root * (root + t)), rel=1e-9)


@pytest.mark.parametrize(("degrees", "t"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980)])
def test_quantiles_of_published_tables(degrees, t):
    assert t_quantile(degrees) == pytest.approx(t, abs=6e-4)


def test_few_and_many_pairs():
    single = paired_difference([0.5], [0.4])
    assert single["mean"] == pytest.approx(0.1)
    assert single["deviation"] is single["low"] is single["high"] is single["p"] is None
    same = paired_difference([0.5, 0.75], [0.25, 0.5])
    assert (same["low"], same["high"], same["p"]) == (0.25, 0.25, None), "no test without a spread"
    many = paired_difference([float(i % 2) for i in range(100)], [0.0] * 100)
    assert many["high"] - many["mean"] == pytest.approx(
        1.98422 * deviation([float(i % 2) for i in range(100)]) / 10, rel=1e-5
    )
    assert spread([1.0, 3.0])["high"] == pytest.approx(2 + 12.7062, abs=1e-4)
    assert mean([1, 2, 6]) == 3 and deviation([1, 2, 6]) == pytest.approx(7**0.5) and deviation([1]) is None
    with pytest.raises(ValueError, match="1"):
        paired_difference([1.0], [1.0, 2.0])
