"""Records that are both trained on and held out."""

import pytest

from mindspore_impl.data.options import FileSet, KeepOptions, ListProgramsSet
from mindspore_impl.data.overlap import shared_count, window_problems
from mindspore_impl.text.records import Message, Record


def of_file(path="a.jsonl", **options) -> FileSet:
    return FileSet(source="records", path=path, **options)


@pytest.mark.parametrize(("train", "held", "overlaps"), [
    (of_file(), of_file(), True),
    (of_file(), of_file("b.jsonl"), False),
    (of_file(), of_file("./a.jsonl"), True),
    (of_file(count=100), of_file(skip=100, count=20), False),
    (of_file(count=100), of_file(skip=99, count=20), True),
    (of_file(skip=100), of_file(count=100), False),
    (of_file(holdout=20), of_file(holdout=20, split="validation"), False),
    (of_file(holdout=20), of_file(holdout=10, split="validation"), False),
    (of_file(), of_file(holdout=20, split="validation"), True),
    (of_file(count=100), of_file(holdout=20, split="validation"), False),  # unknown before the file is read
    (of_file(holdout=20, split="validation"), of_file(holdout=20, split="validation", skip=3), True),
    (of_file(), of_file(keep=KeepOptions(low=0.5)), False),  # a band may exclude what is trained on
    (of_file(), ListProgramsSet(count=3), False),
])  # fmt: skip
def test_windows_of_one_file(train, held, overlaps):
    found = list(window_problems({"t": train, "h": held}, {"t": "stages.x.data.mixture"}, {"h": "evaluation"}))
    assert bool(found) == overlaps
    assert all("evaluation: 'h'" in text and "stages.x.data.mixture" in text for text in found)


def test_records_are_counted_by_their_messages():
    def record(answer, thinking="fast", reasoning=None, identity="x"):
        return Record(identity, (Message("user", "?"), Message("assistant", answer, reasoning)), thinking, {})

    train = [record("1"), record("2", "reasoning", "so")]
    held = [record("1", "reasoning", "thus", "y"), record("2"), record("3")]
    assert shared_count(train, held) == 2
