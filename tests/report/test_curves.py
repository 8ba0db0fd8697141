"""The curves of a run: arms that start from the same weights begin at the same place; the command writes a picture."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import yaml

from mindspore_impl.cli import report
from mindspore_impl.report.curves import arms_of, kl_lines, starts_of, validation_lines
from mindspore_impl.report.run_files import read_run
from tests.report.fixture import change_stage

DATA = {"rows": 2, "sequence_length": 512}
SETTINGS = {
    "before": {"kind": "evaluate", "init": "outputs/half"},
    "recovery": {"kind": "sft", "init": "outputs/half", "data": DATA, "evaluate": True},
    "sft": {"kind": "sft", "init": "recovery", "data": DATA, "evaluate": True},
    "kd": {"kind": "distill", "init": "recovery", "data": {"rows": 4, "sequence_length": 256}, "evaluate": True},
}
VALIDATED = {
    "recovery": [(0, 5e3), (10, 60.0), (20, 30.0)],
    "sft": [(0, 30.0), (20, 20.0)],
    "kd": [(0, 30.0), (20, None)],
}
KL = {"before": 6.0, "eval_recovery": 1.5, "eval_sft": 1.4, "eval_kd": 0.7}


def write_run(folder, kl=KL):
    (folder / "stages").mkdir(parents=True)
    config = {"name": "arms", "order": list(SETTINGS), "evaluation": {"perplexity": ["held"]}, "stages": SETTINGS}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    names = ["before", "recovery", "eval_recovery", "sft", "eval_sft", "kd", "eval_kd"]
    for number, name in enumerate(names, start=1):
        place = folder / "stages" / f"{number:02d}_{name}"
        place.mkdir()
        kind = SETTINGS.get(name, {"kind": "evaluate"})["kind"]
        init = SETTINGS[name]["init"] if name in SETTINGS else name.removeprefix("eval_")
        metrics = {"steps": 20} if kind != "evaluate" else {"accuracy": {}, "perplexity": {"held": {"perplexity": 9.5}}}
        if name in kl:
            metrics["teacher_kl"] = {"held": {"kl": kl[name], "agreement": 0.5, "tokens": 10}}
        record = {"name": name, "kind": kind, "status": "finished", "inputs": {"init": init}, "metrics": metrics}
        (place / "stage.json").write_text(json.dumps(record | {"seconds": 1.0, "tokens": 5}))
        lines = [{"step": step, "validation": {"watched": {"perplexity": y}}} for step, y in VALIDATED.get(name, [])]
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_arms_of_equal_budget_lie_over_the_same_tokens(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    trained = [stage for stage in run.stages if stage.trained]
    starts = starts_of(trained)
    assert starts == {"recovery": 0, "sft": 20480, "kd": 20480}
    assert [stage.name for stage in arms_of(trained)] == ["sft", "kd"]
    assert arms_of(trained[:2]) == trained[:2]
    assert validation_lines(trained, starts, "watched") == [
        ("recovery", [(0, 5e3), (10240, 60.0), (20480, 30.0)]),
        ("sft", [(20480, 30.0), (40960, 20.0)]),
        ("kd", [(20480, 30.0)]),
    ]
    assert kl_lines(run.stages, trained, starts, "held") == [
        ("recovery", [(0, 6.0), (20480, 1.5)]),
        ("sft", [(20480, 1.5), (40960, 1.4)]),
        ("kd", [(20480, 1.5), (40960, 0.7)]),
    ]


def test_the_command_writes_a_picture_for_both_backgrounds(tmp_path):
    folder = write_run(tmp_path / "run")
    for stage, value in (("eval_sft", None), ("eval_recovery", 1e300)):
        change_stage(
            folder, stage, lambda record, y=value: record["metrics"]["perplexity"]["held"].update(perplexity=y)
        )
    assert report.main([str(folder), "--plot", str(tmp_path / "curves.svg")]) == 0
    text = (tmp_path / "curves.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme:dark" in text
    shown = " ".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))
    for words in ("perplexity on watched", "KL of the teacher on held", "thousand tokens", "sft", "kd"):
        assert words in shown
    assert "recovery" not in shown, "only what is compared"
    page = (folder / "report.html").read_text()
    assert "KL of the teacher held" in page
    for cell in ("0.7", "9.5", "–", "1e+300"):
        assert f">{cell}</td>" in page, "a perplexity that is no number leaves the report whole"


@pytest.mark.usefixtures("no_plots")
def test_a_run_without_held_out_numbers_is_refused(tmp_path, capsys):
    folder = write_run(tmp_path / "run", kl={})
    for log in folder.glob("stages/*/metrics.jsonl"):
        log.write_text("")
    assert report.main([str(folder), "--plot", str(tmp_path / "curves.svg")]) == 2
    message = capsys.readouterr().err
    assert str(folder) in message and "evaluation.teacher_kl" in message
    assert not (tmp_path / "curves.svg").exists()
