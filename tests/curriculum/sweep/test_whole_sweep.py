"""A real sweep of three tiny runs, one of which fails, as a person starts it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindspore_impl.distributed import processes
from tests.curriculum.sweep.test_runner import gone_soon

ROOT = Path(__file__).resolve().parents[3]
TINY = [
    "order=[sft_reasoning,sft_fast]", "compare=[]", "evaluation.limit=4", "tokenizer.vocab_size=110",
    *(f"data.sets.{name}.count=60" for name in ("reasoning", "fast", "test_fast", "test_reasoning")),
    "stages.sft_reasoning.train.max_steps=3", "runtime.device=CPU", "runtime.threads=1",
]  # fmt: skip


def command(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "train.py"), *words]


def train(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, timeout=600)


def stage(run: Path, name: str) -> dict:
    (path,) = run.glob(f"stages/[0-9][0-9]_{name}/stage.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_trials_share_stages_and_give_what_single_runs_give(tmp_path):
    folder = tmp_path / "sweep"
    words = ["--multirun", *TINY, "stages.sft_fast.data.rows=4,2,1", "stages.sft_fast.data.sequence_length=128"]
    words += [
        "stages.sft_fast.train.max_steps=2",
        "stages.sft_fast.data.gradient_accumulation_steps=2",
        f"run_dir={folder}",
    ]
    refused = train(*words)
    assert refused.returncode == 2 and "trial rows=1" in refused.stderr and not folder.exists()
    words[words.index("stages.sft_fast.data.rows=4,2,1")] = "stages.sft_fast.data.rows=4,2"
    done = train(*words, "sweep.metric=sft_fast.perplexity.validation_fast")
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = sorted((folder / "trials").iterdir())
    assert "cache" not in stage(first, "sft_reasoning") and "cache" in stage(second, "sft_reasoning")
    assert "cache" in stage(second, "eval_sft_reasoning") and "cache" not in stage(second, "sft_fast")
    assert stage(second, "sft_reasoning")["metrics"] == stage(first, "sft_reasoning")["metrics"]
    record = json.loads((folder / "sweep.json").read_text())
    alone = train(*TINY, *(word.replace("=4,2", "=2") for word in words if "sft_fast" in word), f"run_dir={tmp_path}/a")
    assert alone.returncode == 0, alone.stdout + alone.stderr
    measured = stage(tmp_path / "a", "eval_sft_fast")["metrics"]["perplexity"]["validation_fast"]["perplexity"]
    assert record["trials"][1]["metric"] == measured
    again = train("--resume", str(second))
    assert again.returncode == 0 and again.stdout.count("finished before, skipped") == 4
    report = subprocess.run(
        [sys.executable, "tools/report.py", str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert report.returncode == 0 and "rows=2" in (folder / "summary.md").read_text()


@pytest.mark.slow
def test_two_ranks_share_stages_too(tmp_path):
    words = [*TINY, "order=[sft_reasoning]", "runtime.workers=2", f"runtime.cache={tmp_path / 'cache'}"]
    for name in ("one", "two"):
        done = train(*words, f"run_dir={tmp_path / name}")
        assert done.returncode == 0, done.stdout + done.stderr
    first, second = (stage(tmp_path / name, "sft_reasoning") for name in ("one", "two"))
    assert "cache" not in first and "cache" in second and first["metrics"] == second["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_sweep_and_its_trial(tmp_path, number, code):
    folder = tmp_path / "sweep"
    words = command("--multirun", *TINY, "stages.sft_fast.train.max_steps=100000,100001", f"run_dir={folder}")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 300
        while not list(folder.glob("trials/*/stages/*_sft_fast/metrics.jsonl")):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.2)
        (trial,) = (int(path.name) for path in Path("/proc").glob("[0-9]*") if is_trial(path, folder))
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code and b"the same command continues" in errors
    gone_soon(trial)
    assert not processes.is_alive(trial)
    states = [trial["status"] for trial in json.loads((folder / "sweep.json").read_text())["trials"]]
    assert states == ["failed", "waiting"]


def is_trial(process: Path, folder: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"--resume" in words and any(word.startswith(str(folder).encode()) for word in words)
