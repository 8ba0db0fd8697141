"""The loss of each sample by itself: how hard a checkpoint finds it."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindspore_impl import runtime
from mindspore_impl.data.batches import one_pass
from mindspore_impl.data.packing import shift
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.parts import runs, share_lines
from mindspore_impl.text.chat import Sample


def sample_losses(
    model, samples: Sequence[Sample], sequence_length: int, rows: int, folder: Path, per_part: int
) -> tuple[list[float], float]:
    """Mean cross-entropy over the supervised targets of each sample. Every rank must call this and gets all numbers.

    Returns (losses in nats in the order of samples, seconds that they took). Raises UserError that names the record
    whose loss is not finite, or that is longer than `sequence_length`.

    Args:
        model: A causal language model.
        samples: Rendered samples; packing them changes nothing but rounding.
        sequence_length: Tokens in a packed row.
        rows: Rows in a batch.
        folder: Gets resumable parts; must stand for these samples and weights.
        per_part: Samples in a part.
    """
    network = functools.cache(lambda: _network(model))

    def make(indices: Sequence[int], title: str) -> list[dict]:
        from mindspore_impl.losses.objective import tensors_of

        chosen, losses = [samples[index] for index in indices], {}
        with runtime.progress_bar(sum(len(s.ids) for s in chosen), title, "tok", unit_scale=True) as bar:
            for batch, placements in one_pass(chosen, sequence_length, rows):
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

    lines, seconds = share_lines(folder, runs(range(len(samples)), per_part), make, "loss")
    return [line["loss"] for line in lines], seconds


def _network(model):
    from mindspore_impl.losses.token_losses import TokenLosses

    return TokenLosses(model).set_train(False)
