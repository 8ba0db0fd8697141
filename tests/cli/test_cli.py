"""Commands as a person types them: help, exit codes, one message on stderr and no traceback."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mindspore_impl.cli import report
from tests.report.fixture import build_run

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted((ROOT / "tools").glob("[a-z]*.py"))


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.name)
def test_help_has_an_example(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0 and f"example:\n  python tools/{path.name}" in capsys.readouterr().out
    assert str(path.parent) not in sys.path  # tools/evaluate.py would hide the package `evaluate`


def test_a_tool_runs_without_an_installation_from_any_folder(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "chat.py"), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={})
    assert result.returncode == 0 and "python tools/chat.py" in result.stdout, result.stderr


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


def seeds_run(folder: Path, seeds: list[int]) -> Path:
    for seed in seeds:
        build_run(folder / f"seed_{seed}", seed=seed)
    (folder / "config.yaml").write_text(f"name: quickstart\nseeds: {seeds}\ncompare: [distill_fast, control]\n")
    return folder


def test_report_takes_the_seeds_of_the_run_and_no_other_folder(tmp_path):
    folder = seeds_run(tmp_path / "run", [1, 2])
    for name in ("seed_old", "seed_1_copy", "seed_7"):
        shutil.copytree(folder / "seed_1", folder / name)
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("[1, 2]", "[1, 2, 3]"))
    (folder / "seed_3").mkdir()  # its run has not begun
    assert report.main([str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == ["1", "2"]
    assert {(row["stage"], row["reference"]) for row in summary["differences"]} == {("distill_fast", "control")}
    assert (folder / "seed_2" / "report.html").is_file() and not (folder / "seed_7" / "report.html").exists()


def test_report_of_one_run_ignores_folders_called_seed(tmp_path):
    folder = build_run(tmp_path / "run")
    (folder / "seed_notes").mkdir()
    (folder / "seed_1").mkdir()
    assert report.main([str(folder)]) == 0
    assert (folder / "report.html").is_file() and not (folder / "summary.json").exists()


@pytest.mark.parametrize("text", ["name: [", "- a\n", "\xff", "seeds: 3", "compare: 3"])
def test_report_of_a_damaged_config_is_one_message(tmp_path, text, capsys):
    (tmp_path / "config.yaml").write_text(text, encoding="latin-1")
    assert report.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'config.yaml'}: ") and error.count("\n") == 1


@pytest.mark.parametrize("where", [Path("/"), ROOT / "tools"], ids=str)
def test_help_of_the_test_script_from_any_folder(where):
    command = ["bash", os.path.relpath(ROOT / "tools" / "test.sh", where), "--help"]
    result = subprocess.run(command, cwd=where, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    assert "bash tools/test.sh [--all]" in result.stdout and "--install-only" in result.stdout


def prepare(folder: Path, venv: str) -> subprocess.CompletedProcess:
    """Run prepare_environment in `folder` with a Python whose venv module does what the shell text `venv` says."""
    (folder / "bin").mkdir()
    (folder / "setup.py").write_text("")
    python = folder / "bin" / "python3.11"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\n[ "$1 $2" = "-m pip" ] && exit 0\n{venv}\n')
    python.chmod(0o755)
    command = ["bash", "-c", f"set -euo pipefail; . {ROOT}/tools/_environment.sh; prepare_environment ''"]
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PATH": path})


def test_failed_venv_leaves_nothing_behind(tmp_path):
    result = prepare(tmp_path, "mkdir -p .venv/bin; cp $0 .venv/bin/python; exit 1")
    assert result.returncode == 2 and "venv failed" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_half_made_venv_is_made_again(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    broken = tmp_path / ".venv" / "bin" / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    (tmp_path / ".venv" / "old").write_text("")
    result = prepare(tmp_path, "mkdir -p .venv/bin; cp $0 .venv/bin/python")
    assert result.returncode == 0, result.stderr
    assert "made again" in result.stdout and not (tmp_path / ".venv" / "old").exists()


def test_doctor_names_what_is_there():
    result = call("tools/doctor.py")
    assert result.returncode == 0
    for word in ("mindspore", "device", "CANN", "custom operators", "g++"):
        assert word in result.stdout
