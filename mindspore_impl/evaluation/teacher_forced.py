"""Teacher-forced measures on held-out samples: perplexity, calibration, KL divergence from a teacher.

Sums are kept per batch in resumable parts and added in the order of batches, whatever the number of ranks.
Legend: B rows, L positions, n tokens, b bins, S supervised positions, R of them at a time, V vocabulary.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from mindspore_impl import files, runtime
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.options import EvaluationOptions
from mindspore_impl.evaluation.parts import runs, share_lines
from mindspore_impl.losses.oracle import log_softmax
from mindspore_impl.text.chat import Sample

BATCHES_PER_PART = 4
BINS = 15  # of confidence
_ROWS = 16  # compared at a time: their float64 copies stay in the processor's cache


def measure_perplexity(
    model, samples: dict[str, list[Sample]], options: EvaluationOptions, folder: Path
) -> tuple[dict, dict]:
    """({set: `mean_loss`}, {set: `calibration`}) of `samples`, in one forward pass; parts go to `folder`."""
    if not samples:
        return {}, {}
    from mindspore_impl.losses.objective import mean_loss

    network = functools.cache(lambda: _predictions(model))
    place, title = folder / "perplexity", "perplexity"
    lines = _sums_of_sets(samples, options, lambda batch: prediction_sums(network(), batch), place, title)
    losses = {name: mean_loss([(x["ce"], x["tokens"]) for x in found], name) for name, found in lines.items()}
    return losses, {name: calibration(x["bins"] for x in found) for name, found in lines.items()}


def _sums_of_sets(
    samples: dict[str, list[Sample]], options: EvaluationOptions, sums: Callable, place: Path, title: str
) -> dict[str, list[dict]]:
    """{set: sums(PackedBatch) of each batch in order}, shared among the ranks; the parts of set n go to `place`_n."""
    from mindspore_impl.data.batches import SequentialBatches

    found = {}
    for number, (name, items) in enumerate(samples.items()):
        packed = SequentialBatches(items, options.sequence_length, options.rows)
        with runtime.progress_bar(len(items), f"{title} {name}", "sample") as bar:

            def make(batches: Sequence[int], _, packed=packed, bar=bar) -> list[dict]:
                lines = []
                for batch in batches:
                    ranks.check_stop()
                    lines.append(files.jsonable(sums(packed[batch][0])))
                    bar.update(len(packed.members(batch)))
                return lines

            spans = runs(range(len(packed)), BATCHES_PER_PART)
            lines, _ = share_lines(Path(f"{place}_{number}"), spans, make, title)
            # JSON has no NaN: what was not finite is None there.
            found[name] = [{k: math.nan if v is None and k != "bins" else v for k, v in x.items()} for x in lines]
    return found


def _predictions(model):
    from mindspore_impl.losses.token_losses import TokenLosses

    return TokenLosses(model, predictions=True).set_train(False)


def prediction_sums(network, batch) -> dict:
    """Sums over a PackedBatch's supervised tokens: {"ce" in nats, "tokens", "bins": `bin_sums`, None if not finite}."""
    from mindspore_impl.losses.objective import tensors_of

    outputs = network(*tensors_of(batch, False))
    ce_n, confidence_n, right_n = (each.asnumpy()[batch.loss_weight_BL != 0].astype(np.float64) for each in outputs)
    ce = float(ce_n.sum())
    finite = math.isfinite(ce) and bool(np.isfinite(confidence_n).all())
    return {"ce": ce, "tokens": float(len(ce_n)), "bins": bin_sums(confidence_n, right_n) if finite else None}


def bin_sums(confidence_n: np.ndarray, right_n: np.ndarray) -> list[list[float]]:
    """[tokens, correct predictions, sum of confidence] of each bin, in float64.

    confidence_n: the probability of the most probable id; right_n: whether that id is the target. Bin b holds
    b / BINS < confidence <= (b + 1) / BINS, the first one 0 as well. Raises ValueError for values outside [0, 1].
    """
    confidence_n = np.asarray(confidence_n, np.float64)
    if not ((confidence_n >= 0) & (confidence_n <= 1 + 1e-5)).all():  # float32 may round above 1
        raise ValueError("a confidence lies in [0, 1]")
    confidence_n = np.minimum(confidence_n, 1.0)
    place_n = np.clip(np.ceil(confidence_n * BINS).astype(int) - 1, 0, BINS - 1)
    columns = [np.bincount(place_n, weights, BINS) for weights in (None, np.asarray(right_n, np.float64), confidence_n)]
    return np.stack(columns, 1).astype(float).tolist()


def calibration(sums: Iterable[list | None]) -> dict:
    """Expected calibration error (ECE; Guo et al. 2017, arXiv 1706.04599) from the `bin_sums` of all batches.

    ECE is the distance between mean confidence and accuracy of each bin, averaged over bins weighted by their tokens.
    Returns {"ece", "bins": [{"low", "high", "tokens", "confidence", "accuracy"}], "tokens"}, of the bins that have
    tokens. ECE is None and there are no bins when a batch has no sums or there is no token.
    """
    sums = list(sums)
    if not sums or any(one is None for one in sums):
        return {"ece": None, "bins": [], "tokens": 0}
    total_b3 = sum(np.asarray(one, np.float64) for one in sums)
    tokens = total_b3[:, 0].sum()
    bins = [
        {"low": number / BINS, "high": (number + 1) / BINS, "tokens": int(count), "confidence": sure / count,
         "accuracy": right / count}
        for number, (count, right, sure) in enumerate(total_b3.tolist()) if count
    ]  # fmt: skip
    distance = sum(each["tokens"] * abs(each["confidence"] - each["accuracy"]) for each in bins)
    return {"ece": distance / tokens if tokens else None, "bins": bins, "tokens": int(tokens)}


def measure_teacher_kl(
    model, teacher, samples: dict[str, list[Sample]], vocab_size: int, options: EvaluationOptions, folder: Path
) -> dict[str, dict]:
    """Measure the exact KL(teacher || model) of the next id over the supervised tokens of each set.

    Both models read the same packed rows; their float32 logits over the whole vocabulary are compared in float64.
    Returns {set: {"kl": mean in nats, None when not finite, "agreement": share of equal most probable ids, "tokens"}}.
    Raises UserError when a vocabulary is smaller than the tokenizer's, or a set has no supervised token.

    Args:
        model: A causal language model.
        teacher: The model to compare with.
        samples: Rendered samples by set.
        vocab_size: Of the tokenizer; ids beyond it (a padded lm_head) get no mass.
        options: Length and number of packed rows in a batch.
        folder: Gets the parts.
    """
    for which, checked in (("model", model), ("teacher", teacher)):
        if samples and (size := checked.lm_head_weight.shape[0]) < vocab_size:
            fault = f"the {which}'s vocabulary of {size} is smaller than the tokenizer's {vocab_size}"
            raise UserError(f"teacher_kl: {fault}; compare models of one tokenizer")
    sides = functools.cache(lambda: [_side(one, vocab_size) for one in (teacher, model)])
    place, title = folder / "kl", "KL to the teacher"
    lines = _sums_of_sets(samples, options, lambda batch: divergence_sums(sides(), batch), place, title)
    results = {}
    for name, found in lines.items():
        kl, agreement, tokens = (sum(line[key] for line in found) for key in ("kl", "agreement", "tokens"))
        if not tokens:
            raise UserError(f"teacher_kl: the set {name!r} has no supervised token within sequence_length")
        results[name] = files.jsonable({"kl": kl / tokens, "agreement": agreement / tokens, "tokens": tokens})
    return results


def _side(model, vocab_size: int) -> tuple[Callable, Callable]:
    from mindspore_impl.losses.projected_rows import AllLogits, HiddenStates, ProjectedRows

    return HiddenStates(model).set_train(False), ProjectedRows(model, vocab_size, AllLogits()).set_train(False)


def divergence_sums(sides: list[tuple[Callable, Callable]], batch) -> dict[str, float]:
    """{"kl", "agreement", "tokens"} of a PackedBatch; sides: (HiddenStates, ProjectedRows) of teacher and model."""
    from mindspore import Tensor

    from mindspore_impl.losses.projected_rows import in_chunks

    inputs = [Tensor(array) for array in (batch.input_ids_BL, batch.position_ids_BL, batch.segment_ids_BL)]
    position_S = np.flatnonzero(batch.loss_weight_BL.ravel())  # positions that predict a supervised token
    chunks = [in_chunks(head, hidden(*inputs), position_S) for hidden, head in sides]
    kl, agreement = 0.0, 0
    for (teacher_RV,), (model_RV,) in zip(*chunks, strict=True):
        kl_R, same_R = divergence(teacher_RV, model_RV)
        kl, agreement = kl + float(kl_R.sum()), agreement + int(same_R.sum())
    return {"kl": kl, "agreement": agreement, "tokens": len(position_S)}


def divergence(teacher_RV: np.ndarray, model_RV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL(teacher || model) in nats of rows of logits, float64 [R], NaN if not finite; whether the top ids agree."""
    kl_R = np.empty(len(teacher_RV))
    for first in range(0, len(teacher_RV), _ROWS):
        rows = slice(first, first + _ROWS)
        log_p_RV, log_q_RV = (log_softmax(logits[rows].astype(np.float64)) for logits in (teacher_RV, model_RV))
        kl_R[rows] = (np.exp(log_p_RV) * (log_p_RV - log_q_RV)).sum(axis=1)
    return kl_R, teacher_RV.argmax(axis=1) == model_RV.argmax(axis=1)
