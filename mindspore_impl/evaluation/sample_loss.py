"""The loss of each sample by itself: what a checkpoint finds hard."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mindspore_impl import files, runtime
from mindspore_impl.data.batches import one_pass
from mindspore_impl.data.packing import shift
from mindspore_impl.distributed import resumable
from mindspore_impl.errors import UserError
from mindspore_impl.text.chat import Sample


def sample_losses(
    model, samples: Sequence[Sample], sequence_length: int, rows: int, folder: Path, per_part: int
) -> tuple[list[float], float]:
    """Mean cross-entropy (nats) over the supervised targets of each sample, in their order, and the seconds it took.

    What a sample is packed with changes nothing but rounding. The numbers are kept in `folder` in parts of `per_part`
    samples, so that a killed run goes on at the next part and several ranks share them; `folder` must stand for these
    samples and weights. Every rank must call this and gets all numbers. Raises UserError naming the record whose loss
    is not finite, or that is longer than `sequence_length`.
    """
    paths = [folder / f"part_{first // per_part:05d}.jsonl" for first in range(0, len(samples), per_part)]
    measure = None

    def make(number: int):
        nonlocal measure
        measure = measure or _Measure(model, sequence_length, rows)
        chosen = samples[number * per_part : (number + 1) * per_part]
        title = f"loss part {number + 1}/{len(paths)}"
        with runtime.progress_bar(sum(len(s.ids) for s in chosen), title, "tok", unit_scale=True) as bar:
            losses = measure(chosen, bar.update)
        return lambda path: files.write_jsonl(path, ({"loss": loss} for loss in losses)), {"samples": len(losses)}

    notes = resumable.share(paths, make)
    return [line["loss"] for path in paths for _, line in files.read_jsonl(path)], resumable.seconds(notes)


class _Measure:
    """Calls a compiled TokenLosses over packed batches of one shape."""

    def __init__(self, model, sequence_length: int, rows: int):
        from mindspore_impl.losses.token_losses import TokenLosses

        self.network = TokenLosses(model).set_train(False)
        self.sequence_length, self.rows = sequence_length, rows

    def __call__(self, samples: Sequence[Sample], done) -> list[float]:
        losses = [math.nan] * len(samples)
        for index, ce_L in self.placed(samples):
            sample = samples[index]
            targets_L = shift(sample.ids, sample.supervised)[1]
            losses[index] = float(ce_L[targets_L].mean(dtype=np.float64))
            if not math.isfinite(losses[index]):
                raise UserError(
                    f"record {sample.record_id!r}: its loss is {losses[index]}; the weights are damaged or their "
                    "training diverged, so choose others"
                )
            done(len(sample.ids))
        return losses

    def placed(self, samples: Sequence[Sample]) -> Iterator[tuple[int, np.ndarray]]:
        """(index of the sample, cross-entropy at its positions), in order of packing."""
        from mindspore_impl.losses.objective import tensors_of

        for batch, placements in one_pass(samples, self.sequence_length, self.rows):
            ce_BL = self.network(*tensors_of(batch, False)).asnumpy()
            for row, pieces in enumerate(placements):
                for index, column in pieces:
                    yield index, ce_BL[row, column : column + len(samples[index].ids)]
