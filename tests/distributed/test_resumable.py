"""Resumable parts: what is made once, what is made again, and what a published result leaves behind."""

import pytest

from mindspore_impl import files
from mindspore_impl.distributed import ranks, resumable


@pytest.fixture
def paths(tmp_path):
    return [tmp_path / resumable.FOLDER / "key" / f"part_{number:05d}.jsonl" for number in range(4)]


class Maker:
    """Makes parts of one line, and counts them; `dies_at` kills it before that part."""

    def __init__(self, dies_at=None):
        self.made, self.dies_at = [], dies_at

    def __call__(self, number):
        if number == self.dies_at:
            raise KeyboardInterrupt
        self.made.append(number)
        return lambda path: files.write_jsonl(path, [{"part": number}]), {"tokens": number}


def test_missing_and_damaged_parts_alone_are_made(paths):
    with pytest.raises(KeyboardInterrupt):
        resumable.share(paths, Maker(dies_at=3))
    paths[1].write_text("{}\n")  # damaged
    paths[2].with_suffix(".json").unlink()  # killed between the part and its record
    maker = Maker()
    records = resumable.share(paths, maker)
    assert maker.made == [1, 2, 3] and [record["tokens"] for record in records] == [0, 1, 2, 3]
    assert resumable.lines_of(paths) == [{"part": number} for number in range(4)]
    assert records == [resumable.read_record(path) for path in paths]


def test_ranks_take_turns_at_the_missing_parts(paths, monkeypatch):
    resumable.share(paths[:1], Maker())
    monkeypatch.setenv("RANK_ID", "1")
    monkeypatch.setenv("RANK_SIZE", "2")
    gathered = []
    monkeypatch.setattr(ranks, "gather", lambda value: gathered.append(value) or [value])
    maker = Maker()
    resumable.share(paths, maker, known=lambda number: resumable.read_record(paths[number]))
    assert maker.made == [2], "every second of the missing parts 1, 2, 3"


def test_the_slowest_rank_counts():
    records = [{"rank": 0, "seconds": 1.0}, {"rank": 1, "seconds": 3.0}, {"rank": 0, "seconds": 1.5}]
    assert resumable.seconds(records) == 3
    assert resumable.seconds([]) == 0


def test_a_result_is_valid_for_its_plan_and_content_and_replaces_the_parts(tmp_path, paths):
    resumable.share(paths, Maker())
    result = tmp_path / "result.jsonl"
    (tmp_path / ".result.jsonl.abc.tmp").write_text("left by a killed writer")
    lines = resumable.lines_of(paths)
    resumable.publish_result(result, lambda path: files.write_jsonl(path, lines), "plan", {"count": 4})
    assert resumable.result(result, "plan") == {"count": 4} and resumable.result(result, "another") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "result.jsonl"]
    result.write_text("{}\n")
    assert resumable.result(result, "plan") is None
