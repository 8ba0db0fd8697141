"""Small-sample statistics over seeds, with the distributions of scipy.stats."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev


def spread(values: Sequence[float]) -> dict:
    """{"mean", "deviation", "low", "high", "n"}: mean, sample standard deviation and 95 % t interval of the mean.

    The last two are None for fewer than two values.
    """
    n, centre = len(values), fmean(values)
    if n < 2:
        return {"mean": centre, "deviation": None, "low": None, "high": None, "n": n}
    from scipy import stats

    deviation = stdev(values)
    half = float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return {"mean": centre, "deviation": deviation, "low": centre - half, "high": centre + half, "n": n}


def paired_difference(one: Sequence[float], reference: Sequence[float]) -> dict:
    """one - reference, pair by pair: the result of `spread`, and "p", the two-sided p-value of the paired t test.

    p is None for fewer than two pairs, and where all differences are equal.
    """
    result = spread([a - b for a, b in zip(one, reference, strict=True)])
    if not result["deviation"]:
        return result | {"p": None}
    from scipy import stats

    t = result["mean"] / result["deviation"] * math.sqrt(result["n"])
    return result | {"p": float(2 * stats.t.sf(abs(t), result["n"] - 1))}
