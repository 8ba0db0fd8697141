"""Uncertainty of a measured share."""

import math

Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of `correct` out of `total`, as shares in [0, 1]; (0, 1) when total is 0.

    Source: E. B. Wilson, JASA 22 (1927) 209; method 3 of R. G. Newcombe, Statistics in Medicine 17 (1998) 857.
    Unlike the normal interval it stays inside [0, 1] and has a width at 0 % and 100 %.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"correct={correct} is not between 0 and total={total}")
    if total == 0:
        return 0.0, 1.0
    share, z2 = correct / total, Z_95**2
    centre = share + z2 / (2 * total)
    half = Z_95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    scale = 1 + z2 / total
    # Both ends are exact at the borders; rounding alone would give 1e-17 for 0 correct.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == total else (centre + half) / scale
    return low, high
