"""The report of finished, unfinished, older and damaged runs: content, safety and form."""

import base64
import hashlib
import itertools
import json
import re
import shutil

import pytest

from mindspore_impl import __version__
from mindspore_impl.data import difficulty
from mindspore_impl.errors import UserError
from mindspore_impl.report import drawing, figures, render, run_report
from mindspore_impl.report.diagram import curriculum, lanes
from mindspore_impl.report.run_files import read_run
from mindspore_impl.report.run_report import current_commit, write_report
from mindspore_impl.text.records import Message, Record
from tests.report.distilled import build_distilled
from tests.report.fixture import STAGES, build_run, change_json, change_stage
from tests.report.parsed_page import HOSTILE, Page, data_of


def report_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_metrics_json_has_exactly_the_promised_form(distilled):
    metrics = metrics_of(distilled)
    assert list(metrics) == ["schema", "commit", "device", "versions", "stages", "final"]
    assert (metrics["schema"], metrics["commit"][:8], metrics["versions"]["mindspore"]) == (1, "4f1d2a90", "2.9.0")
    assert "2 cores" in metrics["device"]
    assert [stage["name"] for stage in metrics["stages"]] == [stage[0] for stage in STAGES]
    assert all(list(s) == ["name", "kind", "measured", "seconds", "tokens", "metrics"] for s in metrics["stages"])
    assert [s["measured"] for s in metrics["stages"][:4]] == ["", "teacher", "", "sft_reasoning"]
    last = metrics["stages"][-1]["metrics"]["accuracy"]
    assert metrics["final"] == {"accuracy": {name: value["accuracy"] for name, value in last.items()}}
    capture = next(stage for stage in metrics["stages"] if stage["kind"] == "capture")
    assert capture["metrics"]["teacher_entropy"] is None, "NaN is not JSON"


def test_the_page_shows_every_part(page):
    ids = "summary curriculum accuracy loss distillation generated calibration cost stages samples teacher config"
    assert page.sections == [*ids.split(), "environment"]
    assert "31 (15.5 %)" in page.text, "truncated answers"
    words = ["tail_bucket, K = 3", "✓ right", "✗ wrong", "✂ cut", "kd_weight: 0.9", "teacher entropy (nats)"]
    for word in words + [word for name, kind, *_ in STAGES for word in (name, kind)]:
        assert word in page.text, word
    assert page.text.count("validation_fast") >= 2
    assert (page.tags.count("svg"), page.tags.count("h1"), page.values("lang")) == (6, 1, ["en"])
    assert len([value for value in page.values("aria-label") if value and len(value) > 40]) >= 4


def test_the_page_needs_no_network_and_its_references_resolve(distilled, page):
    html = (distilled / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    (policy,) = [value for value in page.values("content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.S)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", script), "text enters as text only"
    assert all(value.startswith("#") for value in page.values("href")) and not page.values("src")
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    used = {v[1:] for v in page.values("href")} | set(page.values("aria-labelledby"))
    assert used | set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.S):
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg), "a fixed colour would vanish on one of the backgrounds"
        assert "currentColor" in svg
    assert figures.cost_figure(read_run(distilled).stages) in html, "plots are drawn alike each time"


def test_text_from_a_run_cannot_become_markup(tmp_path):
    folder = build_distilled(tmp_path / "run", rollouts=4, hostile=HOSTILE, name=f"run {HOSTILE}")

    def change(record):
        record["inputs"] = {"init": f"weights/{HOSTILE}"} | record["inputs"]
        metrics = record["metrics"]
        metrics["data"] = {"selection": {f"set {HOSTILE}": band([0.1, 0.2], 1) | {"field": f"field {HOSTILE}"}}}
        if "accuracy" in metrics:
            metrics["accuracy"][f"set {HOSTILE}"] = metrics["accuracy"]["test_fast"]
            metrics["benchmarks"] = {f"b {HOSTILE}": {HOSTILE: 0.5, "stderr": {HOSTILE: 0.1}}}

    for stage in ("sft_reasoning", "sft_fast", "eval_sft_fast", "eval_control"):
        change_stage(folder, stage, change)
    hostile = dict.fromkeys(("kind", "work", "group"), HOSTILE)
    for number in range(len(STAGES)):
        change_json(folder / "plan.json", lambda plan, n=number: plan["stages"][n].update(hostile))
        change_json(folder / "plan.json", lambda plan, n=number: plan["stages"][n]["inputs"].update(x=HOSTILE))
    page = report_of(folder)
    assert "img" not in page.tags
    assert page.tags.count("script") == 3, "answers, teacher probabilities and the page's own script"
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert HOSTILE in data_of(html, "browser-data")[0]["samples"][0][3]
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    # name, prompt, answer, reasoning, id, set, version, device, input, config, kind, difficulty, benchmark
    assert page.text.count(HOSTILE) > 40


def test_answers_beyond_the_room_of_a_page_are_counted(distilled, monkeypatch):
    run = read_run(distilled)
    total = sum(len(stage.samples) for stage in run.stages)
    monkeypatch.setattr(run_report, "_EMBEDDED_BYTES", 900)
    html = run_report.samples_section(run)
    embedded = data_of(html, "browser-data")
    held = sum(len(stage["samples"]) for stage in embedded)
    assert 0 < held < total
    assert f'data-note="{total - held} more are' in html
    assert embedded[0]["stage"] == "control", "the newest first"


@pytest.mark.usefixtures("no_plots")
def test_an_unfinished_run_gets_a_report_of_what_is_there(tmp_path):
    begun = build_run(tmp_path / "begun", stop_after=0)
    assert "accuracy" not in report_of(begun).sections
    assert (metrics_of(begun)["stages"], metrics_of(begun)["final"]) == ([], {"accuracy": {}})
    folder = build_run(tmp_path / "run", stop_after=8)
    (folder / "environment.json").unlink()
    page = report_of(folder)
    for words in ("… unfinished", "○ not started", "8 of 12 stages", "11 steps"):
        assert words in page.text
    assert "accuracy" in page.sections
    metrics = metrics_of(folder)
    assert [stage["name"] for stage in metrics["stages"]] == [stage[0] for stage in STAGES[:8]]
    evaluated = metrics["stages"][5]["metrics"]["accuracy"]
    assert metrics["final"]["accuracy"]["test_fast"] == evaluated["test_fast"]["accuracy"]
    assert (metrics["commit"], metrics["device"], metrics["versions"]) == (current_commit(), "not recorded", {})
    run = read_run(folder)
    assert run.stages[8].status == "unfinished"
    assert len(run.stages[8].log) == 13, "the torn last line is left out"
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


def test_the_stages_of_a_run_with_a_plan_and_of_one_without(tmp_path):
    """Compared stages, a stage that is evaluated twice, a killed last evaluation, and what the folders alone tell."""
    folder = build_run(tmp_path / "run")
    run = read_run(folder)
    assert [stage.subject for stage in run.compared] == ["control"], "the last one"
    run.config["compare"] = ["distill_fast", "eval_control"]
    assert [stage.subject for stage in run.compared] == ["control", "distill_fast"], "the last one is always first"
    change_json(folder / "plan.json", lambda plan: plan["stages"][-1].update(measured="distill_fast"))
    run = read_run(folder)
    assert [stage.subject for stage in run.stages[-3:]] == ["distill_fast", "control", "eval_control"]
    assert run_report.metrics_of(run)["stages"][-1]["measured"] == "distill_fast"
    shutil.rmtree(folder / "stages" / "12_eval_control")
    run = read_run(folder)
    assert (run.stages[-1].status, run.stages[-1].inputs) == ("not started", {"init": "control"})
    shutil.rmtree(folder / "stages" / "11_control")
    planned = read_run(folder).stages
    (folder / "plan.json").unlink()
    run = read_run(folder)
    assert [(s.name, s.kind, s.measured, s.subject, s.inputs) for s in run.stages[:10]] == [
        (s.name, s.kind, s.measured, s.subject, s.inputs) for s in planned[:10]
    ]
    assert {stage.group for stage in run.stages} == {"other"}
    assert [(s.name, s.status) for s in run.stages[10:]] == [("control", "not started")], "config.yaml orders it"
    assert [s.name for s in run.stages if s.trained] == ["teacher", "sft_reasoning", "sft_fast", "distill_fast"]


@pytest.mark.usefixtures("no_plots")
def test_the_final_stage_of_order_is_the_first_result(tmp_path):
    """Whatever lies in the folder of an earlier `order` or configuration, and whatever the final stage measures."""
    folder = build_run(tmp_path / "run")
    first = lambda: re.search(", after ([a-z_]+)", report_of(folder).text)[1]  # noqa: E731
    assert first() == "control"
    change_json(folder / "plan.json", lambda plan: plan["stages"].__delitem__(slice(10, None)))
    assert first() == "distill_fast" and metrics_of(folder)["stages"][-1]["name"] == "eval_distill_fast"
    change_stage(folder, "eval_distill_fast", lambda record: record["metrics"].update(accuracy={}))
    assert first() == "distill_fast" and "perplexity validation_fast, after" in report_of(folder).text
    change_json(folder / "plan.json", lambda plan: plan["stages"][-1].update(fingerprint="new"))
    change_stage(folder, "eval_distill_fast", lambda record: record.update(fingerprint="old"))
    assert first() == "sft_fast" and read_run(folder).stages[-1].status == "not started"


@pytest.mark.usefixtures("no_plots")
def test_sections_follow_from_the_data_and_not_from_the_kind(distilled, page, tmp_path):
    folder = shutil.copytree(distilled, tmp_path / "run")
    for path in [folder / "plan.json", *folder.glob("stages/*/stage.json")]:
        path.write_text(re.sub(r'"kind": "\w+"', '"kind": "my_kind"', path.read_text()))
    assert report_of(folder).sections == page.sections


def test_the_commit_of_a_checkout_or_else_the_version(tmp_path, monkeypatch):
    package = tmp_path / "site" / "mindspore_impl" / "report"
    package.mkdir(parents=True)
    monkeypatch.setattr(run_report, "__file__", str(package / "run_report.py"))
    assert current_commit() == __version__
    (tmp_path / "site" / ".git").mkdir()
    assert current_commit() == __version__, "a damaged repository is no reason to fail"


@pytest.mark.parametrize(("path", "content", "words"), [
    ("config.yaml", None, "not a run directory"),
    ("config.yaml", "a: [", "config.yaml: not valid YAML"),
    ("config.yaml", "- a", "expected a mapping"),
    ("plan.json", '{"schema": 2, "stages": []}', "plan.json"),
    ("plan.json", '{"schema": 1, "stages": [{"name": "x", "folder": "../../x"}]}', "outside this folder"),
    ("stages/01_teacher/stage.json", "{", "stage.json:1: not valid JSON"),
    ("stages/01_teacher/metrics.jsonl", '{"step": 1\n{"step": 2}\n', "metrics.jsonl:1: not valid JSON"),
])  # fmt: skip
def test_damage_is_named(tmp_path, path, content, words):
    folder = build_run(tmp_path / "run", stop_after=1)
    (folder / path).unlink()
    if content is not None:
        (folder / path).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(words)):
        write_report(folder)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_have_contrast_on_both_backgrounds():
    for name, (light, dark) in render.PALETTE.items():
        assert 1.05 / (luminance(light) + 0.05) >= 3, name
        assert (luminance(dark) + 0.05) / (luminance("#1a2027") + 0.05) >= 3, name


def test_what_is_drawn_together_has_different_colours():
    diagnostics = ("loss", "ce", "kd", "teacher_entropy", "teacher_mass", "student_mass", "agreement")
    assert len({drawing.METRIC_COLOURS[name] for name in diagnostics}) == 7
    names = ["test_fast", "test_reasoning", "other"]
    assert len({drawing.set_style(name, names) for name in names}) == 3


def test_durations():
    for seconds, words in ((0.44, "0.4 s"), (12.4, "12 s"), (185, "3 min 05 s"), (7630, "2 h 07 min"), (59.9, "60 s")):
        assert render.duration(seconds) == words


def band(values, kept):
    """The difficulty of a set of which the first `kept` records are inside a stage's band."""
    turns = (Message("user", "a"), Message("assistant", "b"))
    records = [Record(f"r{i}", turns, "fast", {difficulty.LOSS: value}) for i, value in enumerate(values)]
    return difficulty.change(records, records[:kept], difficulty.LOSS, "set")


def test_bands_orders_and_benchmarks_are_shown(tmp_path):
    folder = build_run(tmp_path / "run", stop_after=6)
    narrowed = {"samples": 3, "selection": {"scored": band([0.1, 0.2, 0.3, 0.9], 3)}}
    order = {"order": "easy_to_hard", "by": "difficulty_loss", "means": [0.1, 0.5, 0.9]}
    ordered = {"selection": {"whole": band([0.1, 0.5, 0.9], 3)}, "order": order}
    gsm8k = {"gsm8k": {"total": 9, "exact_match": 0.4321, "stderr": {"exact_match": 0.1}}}
    change_stage(folder, "sft_reasoning", lambda record: record["metrics"].update(data=narrowed))
    change_stage(folder, "sft_fast", lambda record: record["metrics"].update(data=ordered))
    change_stage(folder, "teacher", lambda record: record["metrics"].update(data={"selection": {}}))
    change_stage(folder, "eval_teacher", lambda record: record["metrics"].update(benchmarks=gsm8k))
    run = read_run(folder)
    page = Page(run_report.difficulty_section(run))
    assert "sft_reasoning keeps 3 of 4 records of scored by difficulty_loss" in " ".join(page.values("aria-label"))
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", run_report.difficulty_section(run))
    assert cells[9:18] == ["sft_reasoning", "scored", "shuffled", "difficulty_loss", "4", "3", "1", "0.375", "0.2"]
    assert cells[18:21] == ["sft_fast", "whole", "easy_to_hard"]
    assert page.text.count("whole set") == 1, "only a set that was narrowed has a histogram"
    assert "mean difficulty_loss" in page.text
    assert run_report.difficulty_section(read_run(build_run(tmp_path / "other", stop_after=1))) == ""
    assert {"exact_match gsm8k", "0.4321"} <= set(re.findall(r">([^<]*)</t[hd]>", run_report._stage_table(run)))


def test_wires_in_a_lane_never_overlap():
    for seed in range(4):
        spans = [(a, a + 1 + (a * 7 + seed * b) % 5) for a, b in itertools.product(range(6), (1, 2))]
        for (one, a), (other, b) in itertools.combinations(zip(spans, lanes(spans), strict=True), 2):
            assert a != b or one[1] <= other[0] or other[1] <= one[0]
    assert lanes([(0, 1), (1, 2), (2, 3)]) == [0, 0, 0], "a lane is used again"


def test_each_input_of_a_stage_is_a_wire_to_its_box(distilled):
    html = curriculum(read_run(distilled))
    boxes = re.findall(r"<li.*?</li>", html, flags=re.S)
    assert len(boxes) == 7, "evaluations stand in the box of their stage"
    assert "starts from data alone" in boxes[0]
    assert re.search(r"tokens</div>.*test_fast <b>\d", boxes[0])
    groups = [re.search(r'class="group-(\w+)"', box)[1] for box in boxes]
    assert groups == ["training", "training", "training", "generation", "scoring", "training", "training"]
    wires = re.findall(r"<g .*?</g>", html, flags=re.S)
    names = [re.search("<title>(.*?)</title>", wire)[1] for wire in wires]
    assert sorted(names) == ["capture_fast", "rollout_fast", "sft_fast", "sft_reasoning", "teacher"]
    ends = {name: [float(y) // 100 for y in re.findall(r'class="head" d="M\d+ ([\d.]+)', wire)]
            for name, wire in zip(names, wires, strict=True)}  # fmt: skip
    assert (ends["sft_fast"], ends["teacher"], ends["rollout_fast"]) == ([3, 5, 6], [4], [4, 5])
    starts = {name: float(re.search(r'd="M\d+ ([\d.]+)H', wire)[1]) // 100
              for name, wire in zip(names, wires, strict=True)}  # fmt: skip
    assert (starts["teacher"], starts["sft_fast"], starts["capture_fast"]) == (0, 2, 4)
