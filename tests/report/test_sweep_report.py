"""The report of a sweep: configurations over their seeds, what failed, and what came from the cache."""

import csv
import json

import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.report.sweep_files import Sweep, Trial, read_sweep, write_sweep
from mindspore_impl.report.sweep_report import write_sweep_report
from tests.report.fixture import build_run
from tests.report.parsed_page import HOSTILE, Page

METRIC = "distill_fast.accuracy.test_fast"
VALUES = {("a", 1): 0.70, ("a", 2): 0.72, ("b", 1): 0.80, ("b", 2): 0.86, ("b", 3): None, ("c", 1): None}


def build_sweep(folder, metric=METRIC, title="kd_weight", direction="maximize"):
    """Two configurations over seeds, one of whose trials failed, and one that failed altogether."""
    sweep = Sweep("quickstart", ["experiment=quickstart"], {"kd": "list", "seed": "list"}, metric, direction)
    for number, ((choice, seed), value) in enumerate(VALUES.items(), start=1):
        trial = Trial(number, f"{title}={choice}, seed={seed}", f"{title}={choice}", f"trials/{number:03d}", [])
        trial.overrides, trial.seconds = [f"kd={choice}", f"seed={seed}"], 60.0 * number
        trial.status, trial.metric = ("failed", None) if value is None else ("finished", value if metric else None)
        if value is None:
            trial.error = f"models.student:\n  {title} does not fit"
        else:
            build_run(folder / trial.folder, seed=seed)
            set_value(folder / trial.folder, value, cached=number > 1)
        sweep.trials.append(trial)
    write_sweep(folder, sweep)
    return folder


def set_value(run, accuracy: float, cached: bool) -> None:
    (path,) = run.glob("stages/*_eval_distill_fast/stage.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    record["metrics"]["accuracy"]["test_fast"]["accuracy"] = accuracy
    path.write_text(json.dumps(record), encoding="utf-8")
    if cached:
        (path,) = run.glob("stages/01_teacher/stage.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"cache": {"seconds": 9.0}}), encoding="utf-8")
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "compare: [distill_fast, control]\n")


def rows_of(path) -> list[dict]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_configurations_over_their_seeds_best_first(tmp_path):
    write_sweep_report(build_sweep(tmp_path))
    rows = rows_of(tmp_path / "summary.csv")
    assert [row["configuration"] for row in rows] == ["kd_weight=b", "kd_weight=a", "kd_weight=c"]
    assert [(row["trials"], row["finished"], row["cached_stages"]) for row in rows] == [
        ("3", "2", "2"),
        ("2", "2", "1"),
        ("1", "0", "0"),
    ]
    assert float(rows[0][f"{METRIC} mean"]) == pytest.approx(0.83)
    assert float(rows[0][f"{METRIC} deviation"]) == pytest.approx(0.0424264, abs=1e-6)
    assert rows[2][f"{METRIC} mean"] == "" and rows[2][f"{METRIC} n"] == "0"
    assert {"distill_fast.test_fast mean", "control.test_reasoning mean"} <= set(rows[0]), "the compared stages"
    assert "teacher.test_fast mean" not in rows[0]


def test_smaller_can_be_better(tmp_path):
    write_sweep_report(build_sweep(tmp_path, direction="minimize"))
    assert [row["configuration"][-1] for row in rows_of(tmp_path / "summary.csv")] == ["a", "b", "c"]


def test_every_trial_has_a_row_with_its_choices_and_all_accuracies(tmp_path):
    write_sweep_report(build_sweep(tmp_path))
    rows = rows_of(tmp_path / "trials.csv")
    assert [(row["kd"], row["seed"], row["status"]) for row in rows[:3]] == [
        ("a", "1", "finished"),
        ("a", "2", "finished"),
        ("b", "1", "finished"),
    ]
    assert rows[0]["cached_stages"] == "" and rows[1]["cached_stages"] == "teacher"
    assert float(rows[3]["distill_fast.test_fast"]) == 0.86 and rows[3]["teacher.test_fast"] != ""
    assert rows[4]["error"] == "models.student: kd_weight does not fit"


def test_markdown_and_page(tmp_path):
    write_sweep_report(build_sweep(tmp_path))
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| kd_weight=b | 2 of 3 | 83.0 ± 4.2 |" in text
    # paired over seeds 1 and 2: 0.10 and 0.14; 12.706 * 0.0282843 / sqrt(2) = 0.25412
    assert f"| kd_weight=b − kd_weight=a | {METRIC} | +12.0 | -13.4 to +37.4 | 2 |" in text
    assert "| trials/006 | models.student: kd_weight does not fit |" in text
    assert "| 2 kd_weight=a, seed=2 | finished | 72.0 | 2 min 00 s | teacher |" in text
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 1
    assert "4 of 6" in page.text and "2 failed" in page.text and "3 stages came from the cache" in page.text
    assert "models.student: kd_weight does not fit" in page.text


def test_without_a_metric_the_order_stays(tmp_path):
    write_sweep_report(build_sweep(tmp_path, metric=None))
    assert [row["configuration"][-1] for row in rows_of(tmp_path / "summary.csv")] == ["a", "b", "c"]
    assert "−" not in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_sweep_without_a_finished_trial_has_a_report(tmp_path):
    write_sweep(tmp_path, Sweep("quickstart", [], {}, METRIC, trials=[Trial(1, "a", "a", "trials/001_a", ["a=1"])]))
    write_sweep_report(tmp_path)
    assert "| a | 0 of 1 | – |" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_names_cannot_become_markup(tmp_path):
    write_sweep_report(build_sweep(tmp_path, title=HOSTILE))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and HOSTILE in page.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-9], "not valid JSON"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "not a sweep's record of this version"),
        (lambda text: text.replace('"status"', '"stats"'), "unknown key; did you mean 'status'"),
        (lambda text: text.replace("trials/003", "../../003"), "points outside this folder"),
    ],
)
def test_damaged_record_is_one_message(tmp_path, change, message):
    path = build_sweep(tmp_path) / "sweep.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message) as caught:
        read_sweep(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
