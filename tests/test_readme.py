"""The README keeps its promises: no blank left, every file it names is there, every command it shows composes."""

import re
import shlex
from pathlib import Path

import pytest

from mindspore_impl.curriculum import configuration
from mindspore_impl.curriculum.sweep.trials import plan_sweep

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"(?:tools|tests|conf|mindspore_impl|kernels)/[\w./]*\w", TEXT)))
COMMANDS = re.findall(r"python tools/train\.py ([^\n`|]*)", TEXT)


def test_its_pictures_are_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", TEXT)
    assert len(pictures) >= 2 and all((ROOT / name).is_file() for name in pictures)


def test_nothing_is_left_blank():
    assert not re.search(r"@[A-Z]+@|TODO|XXX|TBD", TEXT)


@pytest.mark.parametrize("name", NAMED)
def test_named_files_exist(name):
    assert (ROOT / name).exists() or (ROOT / "mindspore_impl" / name).exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command, tmp_path):
    words = shlex.split(command, comments=True)
    overrides = [word for word in words if not word.startswith("--")]
    if "--multirun" in words:
        plan_sweep([*overrides, f"run_dir={tmp_path / 'sweep'}"])
    else:
        configuration.compose(overrides)
