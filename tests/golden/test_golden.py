"""Loss curves of every quickstart training stage, shortened, against curves that are committed.

A change that is not mathematics must leave them as they are. To accept a change that is:
    PANGU_GOLDEN=write python -m pytest tests/golden
and say why in the commit. Seed and thread count are fixed; the tolerance covers the rounding of other processors.
"""

import json
import math
import os
from pathlib import Path

import pytest

from mindspore_impl.curriculum.configuration import compose
from tests import recorded

GOLDEN = Path(__file__).parent / "quickstart.json"
RELATIVE_TOLERANCE = 2e-3
STEPS = 16
STAGES = ("teacher", "sft_reasoning", "sft_fast", "control", "distill_fast")
OVERRIDES = [
    "experiment=quickstart",
    "runtime=cpu",
    "seed=1",
    "tokenizer.vocab_size=140",
    *(f"data.sets.{name}_{thinking}.count={count}" for thinking in ("reasoning", "fast")
      for name, count in (("teacher", 400), ("validation", 20))),
    *(f"data.sets.{thinking}.count=120" for thinking in ("reasoning", "fast")),
    *(f"stages.{stage}.{setting}" for stage in STAGES
      for setting in (f"train.max_steps={STEPS}", "train.logging_steps=1", "evaluate=false")),
    *(f"stages.{stage}.data.validation=[]" for stage in STAGES[:-1]),  # it moves no curve, and costs a graph each
    "stages.rollout_fast.sampling.max_new_tokens=24",
]  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("golden") / "run")


def run(folder: Path, *overrides: str) -> Path:
    from mindspore_impl.curriculum import runner

    return runner.run(compose([*OVERRIDES, *overrides, f"run_dir={folder}"]))


def curves(run_dir: Path) -> dict[str, dict[str, list[float]]]:
    found = {}
    for stage in STAGES:
        (path,) = run_dir.glob(f"stages/*_{stage}/metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        found[stage] = {key: [line[key] for line in steps] for key in ("loss", "grad_norm")}
        if "kd" in steps[0]:
            found[stage] |= {key: [line[key] for line in steps] for key in ("ce", "kd", "student_mass")}
    return found


def check_curves(found: dict) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert set(found) == set(golden) == set(STAGES)
    for stage, columns in golden.items():
        for key, values in columns.items():
            assert len(values) == STEPS
            assert found[stage][key] == pytest.approx(values, rel=RELATIVE_TOLERANCE, abs=1e-4), f"{stage} {key}"


def test_golden_curves(run_dir):
    found = curves(run_dir)
    if os.environ.get("PANGU_GOLDEN") == "write":
        recorded.write(GOLDEN, found, 2)
    check_curves(found)


@pytest.mark.slow
def test_curves_without_the_fused_operators(tmp_path):
    """The backend of the loss is not mathematics; nor is how the logits are cut."""
    check_curves(curves(run(tmp_path / "run", "runtime.kernels=composed", "runtime.logits_mb=1")))


def test_run_leaves_report_and_metrics(run_dir):
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["schema"] == 1
    assert [stage["name"] for stage in metrics["stages"]] == [
        "teacher", "sft_reasoning", "sft_fast", "control", "rollout_fast", "capture_fast", "distill_fast",
    ]  # fmt: skip
    capture = next(stage["metrics"] for stage in metrics["stages"] if stage["kind"] == "capture")
    assert 0.2 < capture["teacher_ce"] / math.log(140) < 0.8, "a teacher of a few steps knows something"
    assert (run_dir / "report.html").stat().st_size > 10_000


def test_second_run_skips_everything(run_dir, capsys):
    from mindspore_impl.curriculum import runner

    before = {path: path.stat().st_mtime_ns for path in run_dir.glob("stages/*/checkpoints/**/*")}
    runner.run(compose([*OVERRIDES, f"run_dir={run_dir}"]))
    assert capsys.readouterr().out.count("finished before, skipped") == 7
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.glob("stages/*/checkpoints/**/*")}
