"""Held-out batches in parts (see `data/parts.py`): a killed measurement goes on at the next, and ranks share them."""

from collections.abc import Callable
from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.distributed import ranks, resumable
from mindspore_impl.text.chat import Sample

BATCHES_PER_PART = 4


def sums_of_batches(
    items: list[Sample], sequence_length: int, rows: int, sums: Callable, folder: Path, title: str
) -> list[dict]:
    """What sums(PackedBatch) gives of each batch of `items`, in the order of batches, whoever computed it.

    `rows` packed rows of `sequence_length` are a batch. Parts go to `folder`; a number that is not finite is None.
    """
    from mindspore_impl.data.batches import SequentialBatches

    packed = SequentialBatches(items, sequence_length, rows)
    paths = [folder / f"part_{part:05d}.jsonl" for part in range(-(-len(packed) // BATCHES_PER_PART))]
    with runtime.progress_bar(len(items), title, "sample") as bar:

        def part(number: int) -> tuple[resumable.Publish, dict]:
            lines = []
            for batch in range(number * BATCHES_PER_PART, min((number + 1) * BATCHES_PER_PART, len(packed))):
                ranks.check_stop()
                lines.append(files.jsonable(sums(packed[batch][0])))
                bar.update(len(packed.members(batch)))
            return lambda path: files.write_jsonl(path, lines), {}

        resumable.share(paths, part)
    return resumable.lines_of(paths)
