"""The report of finished, unfinished and damaged runs: content, safety and form."""

import base64
import hashlib
import json
import re

import pytest

from mindspore_impl import __version__
from mindspore_impl.errors import UserError
from mindspore_impl.report import figures, run_report, samples
from mindspore_impl.report.run_files import read_run
from mindspore_impl.report.run_report import current_commit, write_report
from mindspore_impl.report.script import SCRIPT
from tests.report.fixture import STAGES, build_run
from tests.report.parsed_page import HOSTILE, Page


def report_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = build_run(tmp_path_factory.mktemp("runs") / "run")
    return folder, report_of(folder)


def test_metrics_json_has_exactly_the_promised_form(finished):
    metrics = json.loads((finished[0] / "metrics.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert list(metrics) == ["schema", "commit", "device", "versions", "stages", "final"]
    assert metrics["schema"] == 1 and metrics["commit"].startswith("4f1d2a90") and "2 cores" in metrics["device"]
    assert metrics["versions"]["mindspore"] == "2.9.0"
    assert [stage["name"] for stage in metrics["stages"]] == [stage[0] for stage in STAGES]
    assert all(list(s) == ["name", "kind", "seconds", "tokens", "metrics"] for s in metrics["stages"])
    last = metrics["stages"][-1]["metrics"]["accuracy"]
    assert metrics["final"] == {"accuracy": {name: value["accuracy"] for name, value in last.items()}}
    capture = next(stage for stage in metrics["stages"] if stage["kind"] == "capture")
    assert capture["metrics"]["teacher_entropy"] is None, "NaN is not JSON"


def test_the_page_shows_every_part(finished):
    page = finished[1]
    sections = [value for tag, key, value in page.attributes if (tag, key) == ("section", "id")]
    body = "summary curriculum accuracy loss distillation calibration cost stages samples teacher config environment"
    assert sections == body.split()
    for name, kind, *_ in STAGES:
        assert name in page.text and kind in page.text
    for words in (
        "mass on the support: tail_bucket, K = 10",
        "✓ right",
        "✗ wrong",
        "✂ cut",
        "mindspore",
        "kd_weight: 0.9",
        "distill_fast: no sequences can be shown",  # this run has no store
    ):
        assert words in page.text, words
    assert page.text.count("validation_fast") >= 2 and "teacher entropy (nats)" in page.text
    assert page.tags.count("svg") == 6 and len([v for v in page.values("aria-label") if v and len(v) > 40]) >= 4
    assert page.tags.count("h1") == 1 and page.values("lang") == ["en"]


def test_the_page_needs_no_network(finished):
    html = (finished[0] / "report.html").read_text(encoding="utf-8")
    page = finished[1]
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    (policy,) = [value for value in page.values("content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    digest = hashlib.sha256(SCRIPT.encode()).digest()
    assert base64.b64encode(digest).decode() in policy and f"<script>{SCRIPT}</script>" in html
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", SCRIPT), "text enters as text only"
    assert all(value.startswith("#") for value in page.values("href")) and not page.values("src")


def test_ids_are_unique_and_references_resolve(finished):
    page = finished[1]
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    used = {v[1:] for v in page.values("href")} | set(page.values("aria-labelledby"))
    used |= set(re.findall(r"url\(#([^)]*)\)", (finished[0] / "report.html").read_text(encoding="utf-8")))
    assert used <= set(ids)


def test_text_from_a_run_cannot_become_markup(tmp_path):
    folder = build_run(tmp_path / "run", hostile=HOSTILE, name=f"run {HOSTILE}")
    for path in (folder / "stages").glob("*/stage.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        record["inputs"] = {"init": f"weights/{HOSTILE}"}
        for found in [record["metrics"].get("accuracy")]:
            if found:
                found[f"set {HOSTILE}"] = dict(found["test_fast"])
        path.write_text(json.dumps(record), encoding="utf-8")
    page = report_of(folder)
    assert "img" not in page.tags and page.tags.count("script") == 2, "the answers and the page's own script"
    html = (folder / "report.html").read_text(encoding="utf-8")
    (text,) = re.findall(r'<script type="application/json" id="browser-data">(.*?)</script>', html, flags=re.S)
    assert HOSTILE in json.loads(text)[0]["samples"][0][3]
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    # name (title and heading), prompt, answer, reasoning, id, set, version, device, input, config
    assert page.text.count(HOSTILE) > 12


def test_answers_beyond_the_room_of_a_page_are_counted(finished, monkeypatch):
    run = read_run(finished[0])
    total = sum(len(stage.samples) for stage in run.stages)
    monkeypatch.setattr(samples, "MOST_BYTES", 900)
    html = samples.section(run)
    embedded = json.loads(html.partition('id="browser-data">')[2].partition("</script>")[0])
    held = sum(len(stage["samples"]) for stage in embedded)
    assert 0 < held < total and f'data-note="{total - held} more are' in html
    newest = [stage.measured for stage in run.stages if stage.samples][-1]
    assert embedded[0]["stage"] == newest


def test_an_unfinished_run_gets_a_report_of_what_is_there(tmp_path):
    folder = build_run(tmp_path / "run", stop_after=8)
    page = report_of(folder)
    assert "… unfinished" in page.text and "○ not started" in page.text and "8 of 12 stages" in page.text
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in metrics["stages"]] == [stage[0] for stage in STAGES[:8]]
    evaluated = metrics["stages"][5]["metrics"]["accuracy"]
    assert metrics["final"]["accuracy"]["test_fast"] == evaluated["test_fast"]["accuracy"]
    run = read_run(folder)
    assert run.stages[8].status == "unfinished" and len(run.stages[8].log) == 13, "the torn last line is left out"


def test_a_run_that_has_only_begun(tmp_path):
    folder = build_run(tmp_path / "run", stop_after=0)
    page = report_of(folder)
    assert "0 of 12 stages" in page.text and 'id="accuracy"' not in (folder / "report.html").read_text(encoding="utf-8")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["stages"] == [] and metrics["final"] == {"accuracy": {}}


def test_a_killed_final_evaluation_is_not_called_finished(tmp_path):
    folder = build_run(tmp_path / "run", stop_after=11)
    (folder / "stages" / "12_eval_control" / "stage.json").unlink()
    (folder / "stages" / "12_eval_control").rmdir()
    assert not read_run(folder).finished and "… unfinished" in report_of(folder).text
    assert read_run(folder).stages[-1].inputs == {"init": "control"}


def test_the_compared_stages_stand_first(tmp_path):
    folder = build_run(tmp_path / "run")
    with open(folder / "config.yaml", "a", encoding="utf-8") as file:
        file.write("compare: [distill_fast, control]\n")
    text = report_of(folder).text
    assert text.index("test_fast, after distill_fast") < text.index("test_fast, after control") < text.index("init")


def test_equal_runs_give_equal_bytes(tmp_path):
    folder = build_run(tmp_path / "run")
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_the_environment_is_filled_in_where_it_is_missing(tmp_path):
    folder = build_run(tmp_path / "run", stop_after=1)
    (folder / "environment.json").unlink()
    report_of(folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["commit"] == current_commit() and metrics["device"] == "not recorded" and metrics["versions"] == {}


def test_the_commit_of_a_checkout_or_else_the_version(tmp_path, monkeypatch):
    package = tmp_path / "site" / "mindspore_impl" / "report"
    package.mkdir(parents=True)
    monkeypatch.setattr(run_report, "__file__", str(package / "run_report.py"))
    assert current_commit() == __version__
    (tmp_path / "site" / ".git").mkdir()
    assert current_commit() == __version__, "a damaged repository is no reason to fail"


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("config.yaml", None, "not a run directory"),
        ("config.yaml", "a: [", "config.yaml: not valid YAML"),
        ("config.yaml", "- a", "expected a mapping"),
        ("stages/01_teacher/stage.json", "{", "stage.json:1: not valid JSON"),
        ("stages/01_teacher/metrics.jsonl", '{"step": 1\n{"step": 2}\n', "metrics.jsonl:1: not valid JSON"),
    ],
)
def test_damage_is_named(tmp_path, path, content, words):
    folder = build_run(tmp_path / "run", stop_after=1)
    if content is None:
        (folder / path).unlink()
    else:
        (folder / path).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(words)):
        write_report(folder)


def test_plots_follow_the_pages_colours(finished):
    html = (finished[0] / "report.html").read_text(encoding="utf-8")
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.S):
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg), "a fixed colour would vanish on one of the backgrounds"
        assert "currentColor" in svg


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("name", figures.PALETTE)
def test_colours_have_contrast_on_both_backgrounds(name):
    light, dark = figures.PALETTE[name]
    assert 1.05 / (luminance(light) + 0.05) >= 3
    assert (luminance(dark) + 0.05) / (luminance("#1a2027") + 0.05) >= 3


def test_a_metric_has_one_colour_everywhere():
    assert set(figures.METRIC_COLOURS.values()) <= set(figures.PALETTE)
    diagnostics = ("loss", "ce", "kd", "teacher_entropy", "teacher_mass", "student_mass", "agreement")
    assert len({figures.METRIC_COLOURS[name] for name in diagnostics}) == 7
    names = ["test_fast", "test_reasoning", "other"]
    assert (
        figures.set_style("test_fast", names)[0] == "green"
        and figures.set_style("test_reasoning", names)[0] == "purple"
    )
    assert len({figures.set_style(name, names) for name in names}) == 3


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.44, "0.4 s"), (12.4, "12 s"), (185, "3 min 05 s"), (7630, "2 h 07 min"), (59.9, "60 s")]
)
def test_durations(seconds, words):
    assert figures.duration(seconds) == words


def test_benchmarks_stand_in_the_table_of_stages(tmp_path):
    folder = build_run(tmp_path / "run")
    path = next((folder / "stages").glob("*_eval_control")) / "stage.json"
    stage = json.loads(path.read_text())
    stage["metrics"]["benchmarks"] = {"gsm8k": {"total": 9, "exact_match": 0.4321, "stderr": {"exact_match": 0.1}}}
    path.write_text(json.dumps(stage))
    text = write_report(folder).read_text(encoding="utf-8")
    assert "exact_match gsm8k" in text and "0.4321" in text
