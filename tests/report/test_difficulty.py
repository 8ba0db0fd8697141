"""What a band or an order made of a stage's data can be read in the report."""

import json

import pytest

from mindspore_impl.data import difficulty
from mindspore_impl.report.run_report import write_report
from mindspore_impl.text.records import Message, Record
from tests.report.fixture import build_run
from tests.report.parsed_page import HOSTILE, Page


def change(values, kept, name="set"):
    turns = (Message("user", "a"), Message("assistant", "b"))
    records = [Record(f"r{i}", turns, "fast", {difficulty.LOSS: value}) for i, value in enumerate(values)]
    return difficulty.change(records, records[:kept], difficulty.LOSS, name)


def report_with(folder, stage, data):
    """The report of a run whose stage `stage` has `data` in its metrics."""
    build_run(folder)
    (path,) = folder.glob(f"stages/[0-9][0-9]_{stage}/stage.json")
    record = json.loads(path.read_text())
    record["metrics"]["data"] = data
    path.write_text(json.dumps(record))
    return Page(write_report(folder).read_text(encoding="utf-8"))


def sections(page):
    return [value for tag, key, value in page.attributes if (tag, key) == ("section", "id")]


def test_a_band_shows_what_it_kept(tmp_path):
    data = {"samples": 3, "selection": {"scored": change([0.1, 0.2, 0.3, 0.9], 3)}}
    page = report_with(tmp_path / "run", "sft_fast", data)
    assert "difficulty" in sections(page) and page.tags.count("svg") == 7
    assert "sft_fast keeps 3 of 4 records of scored by difficulty_loss" in " ".join(page.values("aria-label"))
    assert "sft_fastscoredshuffleddifficulty_loss4310.3750.2" in page.text, "the table's row, cell by cell"
    assert "trained on" in page.text and "whole set" in page.text, "the legend of the histogram"
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [s for s in saved["stages"] if s["name"] == "sft_fast"][0]["metrics"]["data"] == data


def test_an_order_shows_its_course(tmp_path):
    order = {"order": "easy_to_hard", "by": "difficulty_loss", "means": [0.1, 0.5, 0.9]}
    same = change([0.1, 0.5, 0.9], 3)
    page = report_with(tmp_path / "run", "sft_fast", {"selection": {"scored": same}, "order": order})
    assert "easy_to_hard" in page.text and "mean difficulty_loss" in page.text and "share of an epoch" in page.text
    assert "whole set" not in page.text, "a set that no band has touched needs no histogram"


@pytest.mark.parametrize("data", [{}, {"selection": {}}])
def test_a_run_without_either_has_no_such_part(tmp_path, data):
    assert "difficulty" not in sections(report_with(tmp_path / "run", "sft_fast", data))


def test_a_name_cannot_become_markup(tmp_path):
    hostile = change([0.1, 0.2], 1) | {"field": f"difficulty {HOSTILE}"}
    page = report_with(tmp_path / "run", "sft_fast", {"selection": {f"set {HOSTILE}": hostile}})
    assert "img" not in page.tags and page.tags.count("script") == 2 and HOSTILE in page.text
