"""The report of a sweep: configurations over their seeds, what failed, and what came from the cache."""

import csv
import json
import re
from xml.etree import ElementTree

import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.report.sweep_files import Sweep, Trial, read_sweep, write_sweep
from mindspore_impl.report.sweep_report import write_sweep_report
from tests.report.fixture import build_run, change_stage, set_accuracy
from tests.report.parsed_page import HOSTILE, Page

METRIC = "distill_fast.accuracy.test_fast"
VALUES = {("a", 1): 0.70, ("a", 2): 0.72, ("b", 1): 0.80, ("b", 2): 0.86, ("b", 3): None, ("c", 1): None}


def build_sweep(folder, metric=METRIC, title="kd_weight", direction="maximize"):
    """Two configurations over seeds, one of whose trials failed, and one that failed altogether."""
    sweep = Sweep("quickstart", ["experiment=quickstart"], {"kd": "list", "seed": "list"}, metric, direction)
    for number, ((choice, seed), value) in enumerate(VALUES.items(), start=1):
        choices = [f"kd={choice}", f"seed={seed}"]
        trial = Trial(number, f"{title}={choice}, seed={seed}", f"{title}={choice}", f"trials/{number:03d}", choices)
        trial.seconds, trial.status = 60.0 * number, "finished" if value else "failed"
        if value:
            trial.metric = value if metric else None
            run = build_run(folder / trial.folder, seed=seed)
            set_accuracy(run, "distill_fast", value)
            if number > 1:
                change_stage(run, "teacher", lambda record: record.update(cache={"seconds": 9.0}))
            with open(run / "config.yaml", "a") as file:
                file.write("compare: [distill_fast, control]\n")
        else:
            trial.error = f"models.student:\n  {title} does not fit"
        sweep.trials.append(trial)
    write_sweep(folder, sweep)
    return folder


def build_named(folder, **options):
    """Three named trials over seeds that end in stages of different names; the first two under three seeds."""
    sweep = Sweep("ablation", [], {"seed": "list"}, "final.accuracy.test_fast", **options)
    values = {("sft", 1): 0.50, ("sft", 2): 0.54, ("sft", 3): 0.56, ("kd", 1): 0.60, ("kd", 2): 0.62, ("kd", 3): 0.70}
    for number, ((name, seed), value) in enumerate((values | {("other", 1): 0.40}).items(), start=1):
        choices = [f"order={name}", f"seed={seed}"]
        trial = Trial(number, f"{name}, seed={seed}", name, f"trials/{number:03d}", choices, status="finished")
        trial.metric = value
        sweep.trials.append(trial)
        run = build_run(folder / trial.folder, seed=seed, final=f"last_{name}")
        set_accuracy(run, f"last_{name}", trial.metric)
        text = (run / "config.yaml").read_text().replace("kd_weight: 0.9", f"kd_weight: 0.{len(name)}")
        (run / "config.yaml").write_text(text)
    write_sweep(folder, sweep)
    return folder


def rows_of(path) -> list[dict]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A sweep with its report, only to be read."""
    folder = build_sweep(tmp_path_factory.mktemp("sweep"))
    write_sweep_report(folder)
    return folder


def test_configurations_over_their_seeds_best_first(reported):
    rows = rows_of(reported / "summary.csv")
    assert [row["configuration"] for row in rows] == ["kd_weight=b", "kd_weight=a", "kd_weight=c"]
    assert ["".join((row["trials"], row["finished"], row["cached_stages"])) for row in rows] == ["322", "221", "100"]
    assert float(rows[0][f"{METRIC} mean"]) == pytest.approx(0.83)
    assert float(rows[0][f"{METRIC} deviation"]) == pytest.approx(0.0424264, abs=1e-6)
    assert (rows[2][f"{METRIC} mean"], rows[2][f"{METRIC} n"]) == ("", "0")
    assert {"distill_fast.test_fast mean", "control.test_reasoning mean"} <= set(rows[0]), "the compared stages"
    assert "teacher.test_fast mean" not in rows[0]


def test_every_trial_has_a_row_with_its_choices_and_all_accuracies(reported):
    rows = rows_of(reported / "trials.csv")
    assert [row["kd"] + row["seed"] for row in rows] == ["a1", "a2", "b1", "b2", "b3", "c1"]
    assert [row["status"] for row in rows] == ["finished"] * 4 + ["failed"] * 2
    assert (rows[0]["cached_stages"], rows[1]["cached_stages"]) == ("", "teacher")
    assert float(rows[3]["distill_fast.test_fast"]) == 0.86
    assert rows[3]["teacher.test_fast"] != ""
    assert METRIC not in rows[3], "the metric has its own column"
    assert rows[4]["error"] == "models.student: kd_weight does not fit"


def test_markdown_and_page(reported):
    text = (reported / "summary.md").read_text(encoding="utf-8")
    columns = re.search(r"\| configuration .*", text)[0].split(" | ")
    values = re.search(r"\| kd_weight=b \| 2 of 3 .*", text)[0].split(" | ")
    assert columns[2].startswith("control."), "the last stage of order is first"
    assert values[columns.index("distill_fast.test_fast")] == "83.0 [44.9, 121.1]", "4.2 * 12.7 / sqrt(2)"
    # paired over seeds 1 and 2: 0.10 and 0.14; 12.706 * 0.0282843 / sqrt(2) = 0.25412
    assert f"| kd_weight=b − kd_weight=a | {METRIC} | +12.0 | -13.4 to +37.4 | 0.11 | 2 |" in text
    assert "| trials/006 | models.student: kd_weight does not fit |" in text
    assert "| 2 kd_weight=a, seed=2 | finished | 72.0 | 2 min 00 s | teacher |" in text
    page = Page((reported / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 1
    for words in ("4 of 6", "2 failed", "3 stages came from the cache", "models.student: kd_weight does not fit"):
        assert words in page.text


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("options", [{"direction": "minimize"}, {"metric": None}])
def test_smaller_can_be_better_and_without_a_metric_the_order_stays(tmp_path, options):
    write_sweep_report(build_sweep(tmp_path, **options))
    assert [row["configuration"][-1] for row in rows_of(tmp_path / "summary.csv")] == ["a", "b", "c"]
    differences = "−" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert differences == ("metric" not in options)


def test_a_sweep_without_a_finished_trial_has_a_report_and_no_plot(tmp_path):
    write_sweep(tmp_path, Sweep("quickstart", [], {}, METRIC, trials=[Trial(1, "a", "a", "trials/001_a", ["a=1"])]))
    write_sweep_report(tmp_path)
    assert "| a | 0 of 1 | – |" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        write_sweep_report(tmp_path, tmp_path / "plot.svg")
    assert not (tmp_path / "plot.svg").exists()


def test_names_cannot_become_markup(tmp_path):
    write_sweep_report(build_sweep(tmp_path, title=HOSTILE))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert HOSTILE in page.text


def test_record_of_schema_1_is_read_in_todays_keys(reported, tmp_path):
    record = json.loads((reported / "sweep.json").read_text())
    record |= {"schema": 1, "fixed": ["stages.a.train.steps=3"], "space": {"models.s.num_layers": "list"}}
    record["trials"][0]["overrides"] = ["++stages.a.optimizer.schedule=cosine", "seed=1"]
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    found = read_sweep(tmp_path)
    assert found.fixed == ["stages.a.train.max_steps=3"] and found.space == {"models.s.num_hidden_layers": "list"}
    assert found.trials[0].overrides == ["++stages.a.optimizer.lr_scheduler_type=cosine", "seed=1"]


@pytest.mark.parametrize(("old", "new", "message"), [
    ('"schema": 2', "", "not valid JSON"), ('"schema": 2', '"schema": 3', "schema: 3"),
    ('"status"', '"stats"', "'status'"), ("trials/003", "../../003", "../../003"),
])  # fmt: skip
def test_damaged_record_is_one_message(reported, tmp_path, old, new, message):
    (tmp_path / "sweep.json").write_text((reported / "sweep.json").read_text().replace(old, new))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_sweep(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_named_trials_are_compared_by_their_last_stage_with_their_own_reference(tmp_path):
    compare = {"kd": ["other", "sft"], "sft": ["kd"]}
    folder = build_named(tmp_path / "sweep", compare=compare, labels={"kd": "KD & <answers>"})
    write_sweep_report(folder, tmp_path / "plot.svg")
    rows = rows_of(folder / "summary.csv")
    assert [row["configuration"] for row in rows] == ["sft", "KD & <answers>", "other"], "in the order they are written"
    assert float(rows[1]["final.test_fast mean"]) == pytest.approx(0.64)
    # 4.30265 * 0.0529150 / sqrt(3) = 0.131449
    assert float(rows[1]["final.test_fast high"]) == pytest.approx(0.771449, abs=1e-5)
    assert (rows[1]["final.test_reasoning n"], rows[2]["final.test_fast low"]) == ("3", "")
    text = (folder / "summary.md").read_text(encoding="utf-8")
    # 0.10, 0.08, 0.14: mean 0.106667, deviation 0.0305505; t = 6.04743, two degrees: p = 0.0262718
    assert "| KD & <answers> − sft | final.test_fast | +10.7 | +3.1 to +18.3 | 0.026 | 3 |" in text
    assert "| KD & <answers> − sft | final.test_reasoning |" in text
    assert "other −" not in text
    assert "− other" not in text, "a single seed has no interval"
    assert "| sft − KD & <answers> | final.test_fast | -10.7 |" in text, "not against the first one"
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "config" in page.sections
    assert "stages.last_kd.objective.kd_weight" in page.text
    assert "7 of 7" in page.text and "6 of 7" not in page.text
    root = ElementTree.fromstring((tmp_path / "plot.svg").read_text(encoding="utf-8"))
    text = " ".join(root.itertext())
    assert root.tag.endswith("svg")
    assert float(root.get("width")) > 600
    for words in ("KD & <answers>", "test_reasoning", "prefers-color-scheme:dark"):
        assert words in text
    assert "final." not in text
    used = set(re.findall(r"var\(--(\w+)\)", ElementTree.tostring(root, "unicode")))
    assert used and all(text.count(f"--{name}:#") == 2 for name in used), "each colour has a value for both backgrounds"
