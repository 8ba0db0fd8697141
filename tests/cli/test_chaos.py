"""The fault harness must notice a run that does not survive. Stand-ins play the runs; a slow test uses real ones."""

import json
import sys
import textwrap
from pathlib import Path

import pytest

from mindspore_impl import checkpoint
from mindspore_impl.cli import chaos
from mindspore_impl.errors import JobFailed, UserError

# A run of two stages that writes a result of ten steps, and goes on from what it finds.
RUN = """
import json, os, sys, time
from pathlib import Path
run = Path(sys.argv[1])
for number, (name, kind) in enumerate([("teach", "sft"), ("measure", "evaluate")], 1):
    folder = run / "stages" / f"{number:02d}_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    note, result = folder / "stage.json", folder / "samples.jsonl"
    def write(path, text):
        (folder / f".{path.name}.x.tmp").write_text(text)
        time.sleep(0.01)
        os.replace(folder / f".{path.name}.x.tmp", path)
    stage = {"name": name, "kind": kind, "seconds": 0.5}
    if note.is_file() and json.loads(note.read_text())["status"] == "finished":
        continue
    write(note, json.dumps(stage | {"status": "running"}))
    steps = START
    for step in range(steps, 10):
        time.sleep(0.05)
        write(result, "x" * (step + 1))
    write(note, json.dumps(stage | {"status": "finished"}))
"""
RESUMES = "len(result.read_text()) if result.is_file() else 0"


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    def make(start: str, last: str = "") -> Path:
        script = tmp_path / "run.py"
        script.write_text(RUN.replace("START", start) + textwrap.dedent(last))
        command = lambda *settings: [sys.executable, str(script), settings[1].removeprefix("run_dir=")]  # noqa: E731
        monkeypatch.setattr(chaos.processes, "train_command", command)
        return tmp_path / "chaos"

    return make


def test_a_run_that_survives(stand_in, capsys):
    folder = stand_in(RESUMES)
    done = chaos.run(4, [1], folder, seed=1)
    assert len(done) >= 4 and all(kill.identical for kill in done)
    assert {kill.kind for kill in done} == {"sft", "evaluate"} and {kill.during for kill in done} == {"moment", "write"}
    shown = capsys.readouterr().out
    assert shown.strip().splitlines()[-1] == f"{len(done)} of {len(done)} identical"
    assert "kills by kind of stage: evaluate 2, sft 2" in shown
    assert len(json.loads((folder / "chaos.json").read_text())["kills"]) == len(done)


def test_a_run_that_does_not_resume_rightly_is_found(stand_in, capsys):
    folder = stand_in(RESUMES)
    script = folder.parent / "run.py"
    script.write_text(script.read_text().replace('"x" * (step + 1)', '"x" * (step + 1 + (steps > 0))'))  # one twice
    assert chaos.main(["--kills", "2", "--workers", "1", "--folder", str(folder)]) == 1
    shown = capsys.readouterr()
    assert "DIFFERS" in shown.out and "stages that differ: teach" in shown.out
    assert "0 of 2 identical" in shown.out and "results differ" in shown.err


def test_files_left_over_are_found(stand_in):
    folder = stand_in(RESUMES, '(run / ".half.tmp").write_text("")')
    with pytest.raises(JobFailed):
        chaos.run(1, [1], folder)
    kills = json.loads((folder / "chaos.json").read_text())["kills"]
    assert "files left over: .half.tmp" in kills[0]["note"]


def test_a_run_that_fails_by_itself(stand_in):
    folder = stand_in(RESUMES, "sys.exit(3)")
    with pytest.raises(JobFailed, match="exit code 3.*reference_1.log"):
        chaos.run(1, [1], folder)


def test_bad_arguments(tmp_path):
    with pytest.raises(UserError, match="--kills"):
        chaos.run(0, [1], tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--folder"):
        chaos.run(1, [1], tmp_path)


def test_digests_see_every_result_and_no_time(tmp_path):
    import numpy as np

    stage = tmp_path / "stage"
    weights = {"w": np.ones(3, np.float32)}
    checkpoint.save(stage / "checkpoints", 2, weights, {"m": np.zeros(3, np.float32)}, {}, 1)
    (stage / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "tokens_per_second": 5.0}\n')
    before = chaos.digests(stage)
    checkpoint.save(stage / "checkpoints", 2, weights, {"m": np.ones(3, np.float32)}, {}, 1)
    assert chaos.digests(stage) != before
    checkpoint.save(stage / "checkpoints", 2, weights, {"m": np.zeros(3, np.float32)}, {}, 1)
    (stage / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "tokens_per_second": 6.0}\n')
    assert chaos.digests(stage) == before
    (stage / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "tokens_per_second": 6.0}\n')
    assert chaos.digests(stage) != before
    for name in ("rollouts.jsonl", "store/manifest.json", "package/weights.safetensors", "samples.jsonl"):
        before = chaos.digests(stage)
        (stage / name).parent.mkdir(exist_ok=True)
        (stage / name).write_text("x")
        assert chaos.digests(stage) != before
    for measured, same in (
        ({"kl_nats": 0.5, "seconds": 2}, False),
        ({"kl_nats": 0.5, "seconds": 3}, True),
        ({"kl_nats": 0.7, "seconds": 3}, False),
    ):
        before = chaos.digests(stage)
        (stage / "package/parity.json").write_text(json.dumps({"packages": {"fp16": measured}}))
        assert (chaos.digests(stage) == before) is same
    with pytest.raises(JobFailed, match="empty"):
        chaos.digests(tmp_path / "empty")


@pytest.mark.slow
def test_real_runs_survive(tmp_path, capsys):
    assert chaos.main(["--kills", "12", "--folder", str(tmp_path / "chaos")]) == 0
    assert " of 12 identical" in capsys.readouterr().out.splitlines()[-1]
