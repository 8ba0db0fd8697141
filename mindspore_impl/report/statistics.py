"""Small-sample statistics over seeds, without SciPy."""

import functools
import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean of at least one value."""
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation (n - 1 below); None for fewer than two values."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1))


def spread(values: Sequence[float]) -> dict:
    """{"mean", "deviation", "low", "high", "n"} of at least one value, with the 95 % t interval of the mean.

    Deviation and interval are None for fewer than two values.
    """
    n, centre, wide = len(values), mean(values), deviation(values)
    half = None if wide is None else t_quantile(n - 1) * wide / math.sqrt(n)
    low, high = (None, None) if half is None else (centre - half, centre + half)
    return {"mean": centre, "deviation": wide, "low": low, "high": high, "n": n}


def paired_difference(one: Sequence[float], reference: Sequence[float]) -> dict:
    """one - reference, pair by pair: what `spread` gives, and "p", the two-sided p-value of the paired t test.

    p is None for fewer than two pairs, and where all differences are the same.
    """
    result = spread([a - b for a, b in zip(one, reference, strict=True)])
    p = None
    if result["deviation"]:
        p = t_test_p(result["mean"] / result["deviation"] * math.sqrt(result["n"]), result["n"] - 1)
    return result | {"p": p}


def t_test_p(t: float, degrees: int) -> float:
    """The two-sided p-value of Student's t with `degrees` of freedom.

    The regularised incomplete beta function I_x(degrees / 2, 1 / 2) at x = degrees / (degrees + t^2) (Abramowitz and
    Stegun 26.7.1, 26.5).
    """
    a, b, x = degrees / 2, 0.5, degrees / (degrees + t * t)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly its mirror image converges fast
        return 1 - _beta_fraction(b, a, t * t / (degrees + t * t))
    return _beta_fraction(a, b, x)


@functools.cache
def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: between it and its negative lies 95 %."""
    low, high = 0.0, 16.0  # 12.7 at one degree of freedom, and falling
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_test_p(middle, degrees) > 0.05 else (low, middle)
    return high


def _beta_fraction(a: float, b: float, x: float) -> float:
    """I_x(a, b) by its continued fraction (DLMF 8.17.22), from the last of 200 terms to the first."""
    if x <= 0:
        return 0.0
    value = 1.0
    for number in range(200, 0, -1):
        m = number // 2
        if number % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        value = 1 + term / value
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a / value
