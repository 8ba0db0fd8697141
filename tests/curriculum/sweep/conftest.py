"""Trials that take no time: a process that writes what a run leaves behind, without training anything."""

import json
import sys
from pathlib import Path

import pytest

from mindspore_impl.curriculum.sweep import runner, trial_process, trials
from mindspore_impl.curriculum.sweep.runner import run_sweep
from tests.curriculum.conftest import compose_quickly

# Its accuracy follows kd_weight and seed; a weight above 0.85 fails while the file `broken` is there.
FAKE = """
import json, pathlib, re, sys, time
folder = pathlib.Path(sys.argv[1])
text = (folder / "config.yaml").read_text()
weight = float(re.search(r"distill_fast:.*?kd_weight: (\\S+)", text, re.S)[1])
seed = int(re.search(r"^seed: (\\d+)", text, re.M)[1])
with open(folder.parent.parent / "calls.txt", "a") as calls:
    calls.write(folder.name + "\\n")
until = time.monotonic() + 20
while (folder.parent.parent / "meet").exists() and len((folder.parent.parent / "calls.txt").read_text().split()) < 2:
    time.sleep(0.02)
    if time.monotonic() > until:
        sys.exit("error: no other trial runs")
if (folder.parent.parent / "slow").exists():
    time.sleep(60)
if (folder.parent.parent / "broken").exists() and weight > 0.85:
    sys.exit("error: data.train: no such file")
accuracy = round(1 - (weight - 0.6) ** 2 - seed / 100, 6)
measured = {"accuracy": {"test_fast": {"accuracy": accuracy, "correct": 1, "total": 2, "low": 0.1, "high": 0.9}}}
stages = [("01_teacher", "teacher", "sft", {}, {"cache": {"seconds": 9.0}}),
          ("02_eval_distill_fast", "eval_distill_fast", "evaluate", measured, {})]
for place, name, kind, metrics, more in stages:
    (folder / "stages" / place).mkdir(parents=True, exist_ok=True)
    record = {"name": name, "kind": kind, "status": "finished", "seconds": 1.0, "tokens": 1, "metrics": metrics}
    record |= {"inputs": {"init": "distill_fast"} if kind == "evaluate" else {}} | more
    (folder / "stages" / place / "stage.json").write_text(json.dumps(record))
done = [{"name": name, "measured": "distill_fast" if measured is metrics else "", "metrics": metrics}
        for _, name, _, metrics, _ in stages]
(folder / "metrics.json").write_text(json.dumps({"stages": done}))
"""
METRIC = "sweep.metric=distill_fast.accuracy.test_fast"
WEIGHT = "stages.distill_fast.objective.kd_weight"


@pytest.fixture(autouse=True)
def composed_quickly(monkeypatch):
    """Trials are composed in a hundredth of the time. A test of Hydra itself undoes it."""
    monkeypatch.setattr(trials, "compose", lambda overrides, config_dir=None: compose_quickly(*overrides))


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """run(*overrides) runs a sweep of stand-ins in run.folder, without its report; run.calls():
    the trials that ran since it was asked last."""
    monkeypatch.setattr(
        trial_process, "command_of", lambda folder, plugins=(): [sys.executable, "-S", "-c", FAKE, str(folder)]
    )
    monkeypatch.setattr(runner, "_report", lambda plan: None)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.01)
    folder = tmp_path / "sweep"

    def run(*overrides: str, jobs: int = 1) -> list[dict]:
        run_sweep([*overrides, METRIC, f"run_dir={folder}"], jobs)
        return record()["trials"]

    def record() -> dict:
        return json.loads((folder / "sweep.json").read_text())

    def calls() -> list[str]:
        path: Path = folder / "calls.txt"
        found = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    run.folder, run.record, run.calls = folder, record, calls
    return run
