"""Difficulty: numbers in the meta of records, and the bands that select by them.

Three numbers are measured by this package; any other number in meta can be used too, higher being harder.
"""

import math
from collections.abc import Sequence

import numpy as np

from mindspore_impl.data.options import KeepOptions
from mindspore_impl.errors import UserError
from mindspore_impl.text.records import Record

LENGTH = "difficulty_length"  # tokens of the rendered sample
LOSS = "difficulty_loss"  # mean cross-entropy of some weights on its supervised tokens, in nats
PASS_RATE = "difficulty_pass_rate"  # noqa: S105  # share of right answers of a student: high is easy
BUCKETS = ("easy", "medium", "hard")
BINS = 16


def number_of(meta: dict, field: str, where: str) -> float:
    """The number `meta[field]`. Raises UserError naming `where` when it is absent or not finite."""
    value = meta.get(field)
    if value is None:
        fault = f"meta has no {field} (it has {', '.join(sorted(meta)) or 'nothing'})"
        remedy = "measure it with a stage of kind score, which the set then reads (source: stage), or name another"
        raise UserError(f"{where}: {fault}; {remedy} field")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: meta.{field} is {value!r}, not a finite number; measure it again")
    return float(value)


def hardness(values: np.ndarray, field: str) -> np.ndarray:
    """`values` of `field` with the sign that makes higher harder."""
    return -values if field == PASS_RATE else values


def check_keep(keep: KeepOptions, key: str) -> None:
    """Raise UserError naming `key` when the options of a band contradict each other."""
    if (keep.bucket is None) == (keep.low is None and keep.high is None):
        raise UserError(f"{key}: give low, high or both; or a bucket ({', '.join(BUCKETS)}) instead of them")
    low, high = _ends(keep)
    if not low <= high or low == high and keep.ends == "excluded":
        raise UserError(f"{key}: nothing lies between low={keep.low} and high={keep.high}; lower low or raise high")
    if keep.by == "quantile" and any(end is not None and not 0 <= end <= 1 for end in (keep.low, keep.high)):
        raise UserError(f"{key}: low={keep.low} and high={keep.high} are shares of the set, from 0 to 1")
    if keep.ends == "excluded" and (keep.by == "quantile" or keep.bucket):
        raise UserError(f"{key}.ends: excluded applies to values only; set by=value, or ends=included")


def kept(records: Sequence[Record], keep: KeepOptions, key: str) -> list[Record]:
    """The records inside the band, in their order. `key` names the band in messages.

    Shares and buckets are ranges of ranks, easiest record first, ties in their order, so that adjacent shares neither
    overlap nor leave a gap. Raises UserError for contradictory options, a record without the number, or an empty band.
    """
    check_keep(keep, key)
    values = np.array([number_of(r.meta, keep.field, f"{key}: record {r.id!r}") for r in records])
    inside = within(values, keep) if keep.by == "value" and keep.bucket is None else _by_rank(values, keep)
    found = [record for record, chosen in zip(records, inside, strict=True) if chosen]
    if not found:
        spread = f"from {values.min():g} to {values.max():g}" if len(values) else "of no record"
        raise UserError(f"{key}: this keeps none of {len(values)} records, whose {keep.field} is {spread}; widen it")
    return found


def within(values, keep: KeepOptions):
    """Whether a number, or each of an array, lies between the band's two values."""
    low, high = _ends(keep)
    return (values > low) & (values < high) if keep.ends == "excluded" else (values >= low) & (values <= high)


def _ends(keep: KeepOptions, least: float = -math.inf, most: float = math.inf) -> tuple[float, float]:
    return least if keep.low is None else keep.low, most if keep.high is None else keep.high


def _by_rank(values: np.ndarray, keep: KeepOptions) -> np.ndarray:
    low, high = _ends(keep, 0.0, 1.0)
    if keep.bucket is not None:
        low, high = BUCKETS.index(keep.bucket) / 3, (BUCKETS.index(keep.bucket) + 1) / 3
    first, last = round(low * len(values)), round(high * len(values))
    inside = np.zeros(len(values), bool)
    inside[np.argsort(hardness(values, keep.field), kind="stable")[first:last]] = True
    return inside


def change(before: Sequence[Record], after: Sequence[Record], field: str, name: str) -> dict:
    """The effect of a band on the set `name`: counts, means and a histogram of `field` over equal bins.

    {"field", "before", "after", "mean_before", "mean_after", "edges" [BINS + 1], "counts_before", "counts_after"}.
    """
    found: dict = {"field": field}
    for when, records in (("before", before), ("after", after)):
        values = np.array([number_of(record.meta, field, f"{name}: record {record.id!r}") for record in records])
        edges = np.array(found.setdefault("edges", np.histogram_bin_edges(values, BINS).tolist()))
        found |= {when: len(values), f"mean_{when}": float(values.mean())}
        found[f"counts_{when}"] = np.histogram(values, edges)[0].tolist()
    return found
