"""Commands as a person types them: help, exit codes, one message on stderr and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = sorted((ROOT / "tools").glob("*.py"))


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.name)
def test_help_has_an_example(path):
    result = call(str(path), "--help")
    assert result.returncode == 0
    assert f"example:\n  python tools/{path.name}" in result.stdout


def test_user_error_is_one_message_and_exit_2():
    result = call("tools/train.py", "sede=1", PANGU_DEBUG="0")
    assert result.returncode == 2
    assert result.stderr == "error: configuration: sede: unknown key; did you mean 'seed'?\n"
    assert result.stdout == ""


def test_debug_shows_the_traceback():
    result = call("tools/train.py", "sede=1", PANGU_DEBUG="1")
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_dry_run_prints_plan_and_writes_nothing(tmp_path):
    target = tmp_path / "run"
    result = call("tools/train.py", "experiment=quickstart", f"run_dir={target}", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "01_teacher" in result.stdout and "modelled" in result.stdout and "parameters" in result.stdout
    assert not target.exists()


def test_dry_run_of_the_paper_prints_published_sizes(tmp_path):
    for part in ("train", "test"):
        for thinking in ("reasoning", "fast"):
            (tmp_path / f"{part}_{thinking}.jsonl").write_text("{}\n")
    for name in ("tokenizer.model", "w.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    result = call(
        "tools/train.py", "experiment=paper_1b", f"data.train={tmp_path}/train", f"data.test={tmp_path}/test",
        f"tokenizer.path={tmp_path}/tokenizer.model", f"stages.sft_reasoning.init={tmp_path}/w.safetensors",
        f"stages.capture_fast.teacher={tmp_path}/w.safetensors", "--dry-run",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "1,155,912,192" in result.stdout and "8,030,887,936" in result.stdout


def test_show_config_is_what_validates():
    result = call("tools/train.py", "--show-config", "seed=5")
    assert result.returncode == 0 and "seed: 5" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tools/report.py", "nowhere"], "nowhere: not a run directory"),
        (["tools/verify_store.py", "nowhere"], "nowhere"),
        (["tools/train_tokenizer.py", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["tools/train_tokenizer.py", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    ],
)
def test_missing_input(arguments, message):
    result = call(*arguments)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr


def test_doctor_names_what_is_there():
    result = call("tools/doctor.py")
    assert result.returncode == 0
    for word in ("mindspore", "device", "CANN", "custom operators", "g++"):
        assert word in result.stdout
