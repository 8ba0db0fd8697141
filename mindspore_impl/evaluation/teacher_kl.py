"""How far a model is from its teacher on held-out text: KL(teacher || model) of the next id, teacher-forced and exact.

Both models read the same packed rows. At every supervised position their float32 logits over the whole vocabulary are
compared in float64; the mean is over positions, in nats. Legend: B rows, L positions, N = B*L, S supervised positions,
R of them at a time, V vocabulary.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.batch_parts import sums_of_batches
from mindspore_impl.losses.oracle import log_softmax
from mindspore_impl.text.chat import Sample

_ROWS = 16  # compared at a time: their float64 copies stay in the processor's cache


def divergence(teacher_RV: np.ndarray, model_RV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL(teacher || model) in nats of each row of float32 logits, float64 [R]; and where both have the same top id.

    Not a number where either has a logit that is not finite.
    """
    kl_R = np.empty(len(teacher_RV))
    for first in range(0, len(teacher_RV), _ROWS):
        log_p_RV, log_q_RV = (
            log_softmax(logits[first : first + _ROWS].astype(np.float64)) for logits in (teacher_RV, model_RV)
        )
        kl_R[first : first + _ROWS] = (np.exp(log_p_RV) * (log_p_RV - log_q_RV)).sum(axis=1)
    return kl_R, teacher_RV.argmax(axis=1) == model_RV.argmax(axis=1)


def measure_teacher_kl(
    model, teacher, samples: dict[str, list[Sample]], vocab_size: int, sequence_length: int, rows: int, folder: Path
) -> dict[str, dict]:
    """Mean KL(teacher || model) in nats over the supervised tokens of each set, and top-1 agreement.

    Returns {set: {"kl", "agreement", "tokens"}}; kl is None when not finite; agreement is the share of tokens at which
    both have the same most probable id.

    vocab_size: of the tokenizer; ids beyond it (a padded lm_head) get no mass. Parts go to `folder`; sums are kept by
    batch and added up in the order of batches, whoever computed them. Raises UserError when a vocabulary is smaller, or
    a set has no supervised token.
    """
    for which, checked in (("model", model), ("teacher", teacher)):
        if samples and checked.lm_head_weight.shape[0] < vocab_size:
            raise UserError(
                f"evaluation.teacher_kl: the {which}'s vocabulary of {checked.lm_head_weight.shape[0]} is smaller than "
                f"the tokenizer's {vocab_size}; compare models of one tokenizer"
            )
    sides = functools.cache(lambda: [_side(one, vocab_size) for one in (teacher, model)])
    results = {}
    for number, (name, items) in enumerate(samples.items()):
        lines = sums_of_batches(
            items, sequence_length, rows, lambda batch: batch_sums(sides(), batch),
            folder / f"kl_{number}", f"KL to the teacher {name}",
        )  # fmt: skip
        results[name] = _mean(lines, name)
    return results


def _side(model, vocab_size: int) -> tuple[Callable, Callable]:
    from mindspore_impl.losses.projected_rows import AllLogits, HiddenStates, ProjectedRows

    return HiddenStates(model).set_train(False), ProjectedRows(model, vocab_size, AllLogits()).set_train(False)


def batch_sums(sides, batch) -> dict[str, float]:
    """{"kl", "agreement", "tokens"} in sum over the supervised positions of a PackedBatch.

    sides: of the teacher, then of the model, its HiddenStates and ProjectedRows.
    """
    from mindspore import Tensor

    from mindspore_impl.losses.projected_rows import in_chunks

    inputs = [Tensor(array) for array in (batch.input_ids_BL, batch.position_ids_BL, batch.segment_ids_BL)]
    position_S = np.flatnonzero(batch.loss_weight_BL.ravel())  # where the target of a supervised token stands
    chunks = [in_chunks(head, hidden(*inputs), position_S) for hidden, head in sides]
    kl, agreement = 0.0, 0
    for (teacher_RV,), (model_RV,) in zip(*chunks, strict=True):
        kl_R, same_R = divergence(teacher_RV, model_RV)
        kl, agreement = kl + float(kl_R.sum()), agreement + int(same_R.sum())
    return {"kl": kl, "agreement": agreement, "tokens": len(position_S)}


def _mean(lines: list[dict], name: str) -> dict:
    tokens = sum(line["tokens"] for line in lines)
    if not tokens:
        raise UserError(f"evaluation.teacher_kl: the set {name!r} has no supervised token that fits sequence_length")
    kl = math.nan if any(line["kl"] is None for line in lines) else sum(line["kl"] for line in lines) / tokens
    agreement = sum(line["agreement"] for line in lines) / tokens
    return files.jsonable({"kl": kl, "agreement": agreement, "tokens": tokens})
