"""Lines of JSON by index, made in resumable parts that the ranks share."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.distributed import resumable


def share_lines(
    folder: Path, spans: Sequence[Sequence[int]], make: Callable[[Sequence[int], str], list[dict]], title: str
) -> tuple[list[dict], float]:
    """The lines make(indices, title) of all spans, in the order of indices, and the seconds that they took.

    Each span is a part in `folder`; a killed run continues at the next part. Every rank must call this.
    """
    paths = [folder / f"part_{number:05d}.jsonl" for number in range(len(spans))]

    def part(number: int) -> tuple[resumable.Publish, dict]:
        lines = make(spans[number], f"{title} part {number + 1}/{len(spans)}")
        return lambda path: files.write_jsonl(path, lines), {}

    seconds = resumable.seconds(resumable.share(paths, part))
    found = dict(zip((index for span in spans for index in span), resumable.lines_of(paths), strict=True))
    return [found[index] for index in range(len(found))], seconds


def runs(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """Split `indices` into runs of at most `size`."""
    return [indices[first : first + size] for first in range(0, len(indices), size)]
