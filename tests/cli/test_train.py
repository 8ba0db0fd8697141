"""tools/train.py as users of Hydra know it: --cfg job, --resolve, --config-dir, --multirun, -m, and what is refused."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mindspore_impl.cli import train

ROOT = Path(__file__).resolve().parents[2]
MINE = "# @package _global_\ndefaults: [rehearsal]\nname: mine\nseed: 7\n"


@pytest.fixture
def run(run):
    """run(*arguments) -> (exit code, stdout, stderr), in this process."""
    return functools.partial(run, train)


def test_cfg_job_prints_what_hydra_composes(run):
    for more, run_dir in ((["--resolve"], "outputs/x"), ([], "outputs/${name}")):
        code, shown, error = run("--cfg", "job", "seed=5", "name=x", *more)
        plain = yaml.safe_load(shown)
        assert (code, error, plain["seed"], plain["run_dir"]) == (0, "", 5, run_dir)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--cfg all", ""),
        ("--resolve", "--resolve --cfg"),
        ("--multirun seed=1,2 --cfg job", "--cfg --multirun"),
        ("-m seed=1,2 --show-config", "--show-config --multirun"),
        ("-m --resume run", "--resume --multirun"),
        ("--jobs 2", "--jobs --multirun"),
        ("--resume run seed=1", "--resume seed=1"),
        ("--resume run --config-dir .", "--resume --config-dir"),
        ("seed=1,2", "seed --multirun"),
        ("sweep=optuna_example", "sweep --multirun"),
        ("--config-dir nowhere", "--config-dir nowhere"),
        ("-m seed=1,2 hydra.sweep.dir=x", "hydra.sweep.dir=x"),
        ("-m seed=1,2 hydra/sweeper=optuna", "hydra/sweeper=optuna"),
        ("-m seed=1,2 stages.教师.evaluate=true", "stages.教师.evaluate=true"),
        (
            "-m data=records,list_programs data.train=a data.test=b data.sets.teacher_fast.noise=0.5",
            "data=records data.sets.teacher_fast.noise",
        ),
    ],
)
def test_what_cannot_be_is_one_message_and_exit_2(run, arguments, words):
    try:
        code, _, error = run(*arguments.split())
    except SystemExit as exit:  # argparse
        code, error = exit.code, ""
    assert code == 2
    assert [word for word in words.split() if word not in error] == [], error


def test_a_key_of_one_swept_file_alone_names_the_trial(run, tmp_path):
    (tmp_path / "bare.yaml").write_text("sets: {}\n")
    for files in (f"{tmp_path}/bare.yaml,list_programs", f"list_programs,{tmp_path}/bare.yaml"):
        code, _, error = run("-m", f"data={files}", "data.sets.teacher_fast.noise=0.5", "--dry-run")
        assert code == 2 and f"trial data={tmp_path}/bare.yaml: " in error and "data.sets.teacher_fast" in error


def test_files_of_ones_own_from_another_folder(tmp_path, monkeypatch, run):
    """One run and a sweep, with a folder of groups and with a file, both of awkward names."""
    folder = tmp_path / "实验, #1=it's"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    file = folder.relative_to(tmp_path) / "experiment" / "mine.yaml"
    chosen = [[f'experiment="{file}"'], ["--config-dir", str(folder), "experiment=mine"]]
    for own, option in zip(chosen, ("--multirun", "-m"), strict=True):
        code, shown, error = run(*own, "--dry-run", "stages.teacher.evaluate=true")
        assert (code, error) == (0, "") and shown.startswith("mine: ") and "eval_teacher" in shown
        code, shown, error = run(option, *own, "--dry-run", "stages.teacher.train.max_steps=3,4")
        assert (code, error) == (0, "") and "001_max_steps=3" in shown and "002_max_steps=4" in shown
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_tool_composes_a_file_from_any_folder(tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE)
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "experiment=mine.yaml", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0 and yaml.safe_load(done.stdout)["name"] == "mine", done.stderr
