"""Means over scores, with their standard errors and confidence intervals."""

import math


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of `correct` out of `total`, as shares in [0, 1]; (0, 1) when total is 0.

    Source: E. B. Wilson, JASA 22 (1927) 209; method 3 of R. G. Newcombe, Statistics in Medicine 17 (1998) 857.
    Raises ValueError for counts that are not 0 <= correct <= total.
    """
    from scipy.stats import binomtest

    if total == correct == 0:
        return 0.0, 1.0
    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def summary(metrics: tuple[str, ...], lines: list[dict]) -> dict:
    """Means of `metrics` over all lines, with standard errors and intervals, and over the lines of each "group".

    Returns {"total", "metrics": {metric: {"value", "stderr"} and, where every score is 0 or 1, "low" and "high" of the
    Wilson interval}, "groups": {group: {"total", metric...}}, "truncated": lines that have not "ended"}.
    """
    found = {}
    for metric in metrics:
        values = [line[metric] for line in lines]
        mean, total = sum(values) / len(values), len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (total - 1)) if total > 1 else 0.0
        found[metric] = {"value": mean, "stderr": spread / math.sqrt(total)}
        if set(values) <= {0.0, 1.0}:
            found[metric]["low"], found[metric]["high"] = wilson_interval(int(sum(values)), total)
    groups = {}
    for name in dict.fromkeys(line["group"] for line in lines if line["group"]):
        some = [line for line in lines if line["group"] == name]
        means = {metric: sum(line[metric] for line in some) / len(some) for metric in metrics}
        groups[name] = {"total": len(some)} | means
    truncated = sum(not line.get("ended", True) for line in lines)
    return {"total": len(lines), "metrics": found, "groups": groups, "truncated": truncated}
