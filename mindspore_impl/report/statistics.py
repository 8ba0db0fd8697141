"""Small-sample statistics over seeds, without SciPy."""

import math
from collections.abc import Sequence

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom; beyond, the last one is used, which is a little wide.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


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
    """{"mean", "deviation", "n"} of at least one value."""
    return {"mean": mean(values), "deviation": deviation(values), "n": len(values)}


def paired_difference(one: Sequence[float], reference: Sequence[float]) -> dict:
    """one - reference, pair by pair: {"mean", "deviation", "n", "low", "high"} with the 95 % t interval of the mean.

    The interval is None for fewer than two pairs.
    """
    differences = [a - b for a, b in zip(one, reference, strict=True)]
    n, centre, spread = len(differences), mean(differences), deviation(differences)
    result = {"mean": centre, "deviation": spread, "n": n, "low": None, "high": None}
    if spread is not None:
        half = T_975[min(n - 1, len(T_975)) - 1] * spread / math.sqrt(n)
        result |= {"low": centre - half, "high": centre + half}
    return result
