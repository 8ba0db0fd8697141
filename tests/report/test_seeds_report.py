"""The comparison of one curriculum under several seeds."""

import json

import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.report.seeds_report import write_seeds_report
from tests.report.fixture import build_run, set_accuracy
from tests.report.parsed_page import Page


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    found = {seed: build_run(folder / f"seed_{seed}", seed=seed) for seed in (1, 2, 3)}
    for (_, run), one, reference in zip(found.items(), (0.80, 0.70, 0.78), (0.70, 0.66, 0.65), strict=True):
        set_accuracy(run, "distill_fast", one)
        set_accuracy(run, "control", reference)
    return found


def test_summary_markdown_and_page(runs, tmp_path):
    summary = write_seeds_report(runs, tmp_path, compare=("distill_fast", "control"))
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == summary
    assert summary["seeds"] == ["1", "2", "3"]
    row = next(r for r in summary["stages"] if (r["stage"], r["set"]) == ("distill_fast", "test_fast"))
    assert (row["values"], row["n"]) == ({"1": 0.80, "2": 0.70, "3": 0.78}, 3)
    assert (row["mean"], row["deviation"]) == pytest.approx((0.76, 0.0529150), abs=1e-6)
    difference = next(d for d in summary["differences"] if d["set"] == "test_fast")
    assert (difference["stage"], difference["reference"], difference["n"]) == ("distill_fast", "control", 3)
    # differences 0.10, 0.04, 0.13: mean 0.09, deviation 0.0458258, half width 4.30265 * deviation / sqrt(3)
    assert (difference["mean"], difference["deviation"]) == pytest.approx((0.09, 0.0458258), abs=1e-6)
    assert (difference["low"], difference["high"]) == pytest.approx((-0.0238375, 0.2038375), abs=1e-6)
    assert len(summary["differences"]) == 2, "one a set"
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| distill_fast | test_fast | 76.0 | 62.9 to 89.1 | 5.3 | 3 | 80.0 | 70.0 | 78.0 |" in text
    assert "| distill_fast − control | test_fast | +9.0 | -2.4 to +20.4 | 0.077 | 3 |" in text
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 1
    assert page.text.index("after control") < page.text.index("after distill_fast"), "the last stage of order is first"
    assert "+9.0" in page.text
    assert len(page.values("id")) == len(set(page.values("id")))


@pytest.mark.usefixtures("no_plots")
def test_stages_may_be_named_by_their_evaluation_and_the_last_is_compared_with_each(runs, tmp_path):
    by_stage = write_seeds_report(runs, tmp_path, compare=("distill_fast", "control"))
    assert write_seeds_report(runs, tmp_path, compare=("eval_distill_fast", "control")) == by_stage
    summary = write_seeds_report(runs, tmp_path)
    assert {d["stage"] for d in summary["differences"]} == {"control"}
    assert len(summary["differences"]) == 4 * 2


@pytest.mark.usefixtures("no_plots")
def test_a_seed_that_stopped_early_counts_where_it_can(runs, tmp_path):
    runs = {1: runs[1], 2: build_run(tmp_path / "seed_2", seed=2, stop_after=10)}
    summary = write_seeds_report(runs, tmp_path, compare=("distill_fast", "control"))
    by_stage = {row["stage"]: row for row in summary["stages"] if row["set"] == "test_fast"}
    assert (by_stage["distill_fast"]["n"], by_stage["control"]["n"]) == (2, 1)
    assert by_stage["control"]["deviation"] is None
    assert [(d["n"], d["low"]) for d in summary["differences"]] == [(1, None), (1, None)]
    assert "–" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_user_errors(runs, tmp_path):
    with pytest.raises(UserError, match="seed"):
        write_seeds_report({}, tmp_path)
    with pytest.raises(UserError, match="compare.*'distil_fast'.*distill_fast"):
        write_seeds_report(runs, tmp_path, compare=("distil_fast", "control"))
    with pytest.raises(UserError, match="nowhere"):
        write_seeds_report({1: tmp_path / "nowhere"}, tmp_path)
