"""Calibration: whether a model is right as often as it is sure.

At every supervised token of held-out text the model's most probable id comes with a probability, its confidence, and
it is right or not. Tokens are sorted into BINS equal bins of confidence; the expected calibration error (ECE; Guo et
al. 2017, arXiv 1706.04599) is the mean distance of confidence and accuracy in the bins, weighted by their tokens.
Legend: B rows, L positions, n tokens, b bins.
"""

import math
from collections.abc import Iterable

import numpy as np

BINS = 15


def bin_sums(confidence_n: np.ndarray, right_n: np.ndarray) -> list[list[float]]:
    """[tokens, right ones, sum of confidence] of each bin, in float64.

    Bin b holds b / BINS < confidence <= (b + 1) / BINS; the first bin holds 0 too. Raises ValueError for a confidence
    outside [0, 1] or NaN.
    """
    confidence_n = np.asarray(confidence_n, np.float64)
    if not ((confidence_n >= 0) & (confidence_n <= 1 + 1e-5)).all():  # float32 may round above 1
        raise ValueError("a confidence lies in [0, 1]")
    confidence_n = np.minimum(confidence_n, 1.0)
    place_n = np.clip(np.ceil(confidence_n * BINS).astype(int) - 1, 0, BINS - 1)
    columns = [np.bincount(place_n, weights, BINS) for weights in (None, np.asarray(right_n, np.float64), confidence_n)]
    return np.stack(columns, 1).astype(float).tolist()


def batch_sums(network, batch) -> dict:
    """{"ce", "tokens", "bins"} of the supervised tokens of a PackedBatch.

    ce: the sum of their cross-entropy in nats; bins: their `bin_sums`, None where the model gives no number.

    network: a TokenPredictions. The sum may be NaN or infinite.
    """
    from mindspore_impl.losses.objective import tensors_of

    outputs = network(*tensors_of(batch, False))
    ce_n, confidence_n, right_n = (each.asnumpy()[batch.loss_weight_BL != 0].astype(np.float64) for each in outputs)
    ce = float(ce_n.sum())
    whole = math.isfinite(ce) and bool(np.isfinite(confidence_n).all())
    return {"ce": ce, "tokens": float(len(ce_n)), "bins": bin_sums(confidence_n, right_n) if whole else None}


def calibration(sums: Iterable[list | None]) -> dict:
    """Expected calibration error of the `bin_sums` of all batches, added up in their order.

    Returns {"ece", "bins": [{"low", "high", "tokens", "confidence", "accuracy"}], "tokens"}: shares in [0, 1], means of
    the bins that have tokens; other bins are left out.

    ECE is None and there are no bins when a batch has no sums or there is no token.
    """
    sums = list(sums)
    if not sums or any(one is None for one in sums):
        return {"ece": None, "bins": [], "tokens": 0}
    total_b3 = np.zeros((BINS, 3))
    for one in sums:
        total_b3 += np.asarray(one, np.float64)
    tokens = total_b3[:, 0].sum()
    bins = [
        {"low": number / BINS, "high": (number + 1) / BINS, "tokens": int(count), "confidence": sure / count,
         "accuracy": right / count}
        for number, (count, right, sure) in enumerate(total_b3.tolist()) if count
    ]  # fmt: skip
    distance = sum(each["tokens"] * abs(each["confidence"] - each["accuracy"]) for each in bins)
    return {"ece": distance / tokens if tokens else None, "bins": bins, "tokens": int(tokens)}
