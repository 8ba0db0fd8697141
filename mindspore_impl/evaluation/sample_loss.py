"""The loss of each sample by itself: how hard a checkpoint finds it."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspore_impl import runtime
from mindspore_impl.data.batches import one_pass
from mindspore_impl.data.packing import shift
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.parts import runs, share_lines
from mindspore_impl.text.chat import Sample


@dataclass(frozen=True)
class LossJob:
    """Whose loss on what is measured."""

    model: Any  # a causal language model
    samples: Sequence[Sample]  # rendered; packing them changes nothing but rounding
    sequence_length: int  # tokens in a packed row
    rows: int  # in a batch
    folder: Path  # gets resumable parts; must stand for these samples and weights
    per_part: int  # samples in a part


def sample_losses(job: LossJob) -> tuple[list[float], float]:
    """Mean cross-entropy over the supervised targets of each sample. Every rank must call this and gets all numbers.

    Returns (losses in nats in the order of samples, seconds that they took). Raises UserError that names the record
    whose loss is not finite, or that is longer than `sequence_length`.
    """
    samples, sequence_length = job.samples, job.sequence_length
    network = functools.cache(lambda: _network(job.model))

    def make(indices: Sequence[int], title: str) -> list[dict]:
        from mindspore_impl.losses.objective import tensors_of

        chosen, losses = [samples[index] for index in indices], {}
        with runtime.progress_bar(sum(len(s.ids) for s in chosen), title, "tok", unit_scale=True) as bar:
            for batch, placements in one_pass(chosen, sequence_length, job.rows):
                ce_BL = network()(*tensors_of(batch, False)).asnumpy()
                for row, column, index in [(row, c, i) for row, pieces in enumerate(placements) for i, c in pieces]:
                    sample = chosen[index]
                    targets_L = shift(sample.ids, sample.supervised)[1]
                    ce_L = ce_BL[row, column : column + len(sample.ids)][targets_L]
                    losses[index] = float(ce_L.mean(dtype=np.float64))
                    if not math.isfinite(losses[index]):
                        fault = f"its loss is {losses[index]}; choose other weights"
                        raise UserError(f"record {sample.record_id!r}: {fault}")
                    bar.update(len(sample.ids))
        return [{"loss": losses[index]} for index in range(len(chosen))]

    lines, seconds = share_lines(job.folder, runs(range(len(samples)), job.per_part), make, "loss")
    return [line["loss"] for line in lines], seconds


def _network(model):
    from mindspore_impl.losses.token_losses import TokenLosses

    return TokenLosses(model).set_train(False)
