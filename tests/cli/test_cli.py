"""Commands as a person types them: help, exit codes, one message on stderr and no traceback."""

import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mindspore_impl.cli import report, train, train_tokenizer, verify_store
from mindspore_impl.cli.command import command
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import JobFailed, UserError
from tests.curriculum.conftest import paper_files
from tests.report.conftest import no_plots  # noqa: F401
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
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and "'seed'" in result.stderr and result.stderr.count("\n") == 1


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    assert command(lambda arguments: print("\u4e2d\udcff"))([]) == 0
    assert shown.getvalue() == b"\\u4e2d\\udcff\n"


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_reader_that_leaves_is_no_error(size):
    code = "import sys; from mindspore_impl.cli.command import command; "
    code += f"sys.exit(command(lambda _: print('x' * {size}))())"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_debug_shows_the_traceback(run, monkeypatch):
    monkeypatch.setenv("PANGU_DEBUG", "1")
    with pytest.raises(UserError):
        run(train, "sede=1")


def test_dry_run_prints_plan_and_writes_nothing(run, tmp_path):
    code, shown, _ = run(train, "experiment=quickstart", f"run_dir={tmp_path / 'run'}", "--dry-run")
    assert code == 0 and "01_teacher" in shown and "modelled" in shown and "parameters" in shown
    assert not (tmp_path / "run").exists()


def test_dry_run_of_the_paper_prints_published_sizes(run, tmp_path, monkeypatch):
    code, shown, _ = run(train, "experiment=paper_1b", *paper_files(tmp_path, monkeypatch), "--dry-run")
    assert code == 0 and "1,155,912,192" in shown and "8,030,887,936" in shown


def test_show_config_prints_the_composed_values(run):
    code, shown, _ = run(train, "--show-config", "seed=5")
    assert code == 0 and "seed: 5" in shown


@pytest.mark.parametrize(
    ("tool", "name"),
    [(report, "nowhere"), (verify_store, "nowhere"), (train_tokenizer, "no.txt"), (train_tokenizer, "no.jsonl")],
)
def test_missing_input_is_named(run, monkeypatch, tmp_path, tool, name):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(tool, name)
    assert code == 2 and error.startswith("error: ") and name in error and error.count("\n") == 1


@pytest.mark.parametrize("option", ["--vocab-size=20", "--character-coverage=2"])
def test_a_tokenizer_names_the_options_of_its_command(run, tmp_path, option):
    (tmp_path / "a.txt").write_text("ka lo mi ren tu shi\n")
    code, _, error = run(train_tokenizer, str(tmp_path / "a.txt"), "--output", str(tmp_path / "t.model"), option)
    assert code == 2 and option.partition("=")[0] in error and "tokenizer." not in error


def test_errors_become_exit_codes(run):
    def raising(error):
        def function(arguments):
            raise error

        return SimpleNamespace(main=command(function))

    for error, code in ((JobFailed("rank 1"), 1), (KeyboardInterrupt(), 130), (ranks.Stopped(agreed=True), 143)):
        found, _, told = run(raising(error))
        assert found == code and told.count("\n") == 1


def seeds_run(folder: Path, seeds: list[int]) -> Path:
    for seed in seeds:
        build_run(folder / f"seed_{seed}", seed=seed)
    (folder / "config.yaml").write_text(f"name: quickstart\nseeds: {seeds}\ncompare: [distill_fast, control]\n")
    return folder


@pytest.mark.usefixtures("no_plots")
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


@pytest.mark.usefixtures("no_plots")
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
    assert all(option in result.stdout for option in ("--all", "--resume", "--install-only"))


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
