"""Every file of conf/ says what it is for, composes, and leaves no knob unnamed."""

import dataclasses
import functools
import itertools

import pytest
import yaml

from mindspore_impl import config
from mindspore_impl.curriculum import configuration, key_reference
from mindspore_impl.curriculum.stages import KINDS
from mindspore_impl.export.options import ExportOptions
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.model.options import LoraOptions, ModelOptions
from mindspore_impl.runtime import RuntimeOptions
from mindspore_impl.training.options import OptimizerOptions

FILES = sorted(config.conf_folder().rglob("*.yaml"))
FILES = [f for f in FILES if f.parent.name != "selection"]  # recipes of another command: tests/data/selection
GIVEN = ("data.train=a", "data.test=b")  # files of data=gsm8k and data=records


@functools.cache
def compose(*overrides: str):
    return configuration.compose(list(overrides))


def names(group: str) -> list[str]:
    return [f.stem for f in FILES if f.parent.name == group and not f.stem.startswith("_")]


def commands_of(path) -> list[list[str]]:
    """The overrides of every command in a file's opening comment; a backslash joins lines, options are left out."""
    text = "\n".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    found = [line.split("tools/train.py", 1)[1] for line in lines if line.startswith("python tools/train.py")]
    return [[word for word in line.split() if not word.startswith("-")] for line in found]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(config.conf_folder())))
def test_opens_with_its_purpose_and_commands_that_compose(path):
    head = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert sum(line.startswith("#") for line in head[:8]) >= 2
    composed = [compose(*overrides) for overrides in commands_of(path)]
    assert composed
    if path.parent.name == "experiment":
        assert composed[0].name == path.stem and composed[0].order


def test_every_choice_of_every_group_composes():
    """Several groups at once: none of them changes another's keys."""
    groups = {
        "data": "data", "runtime": "runtime", "curriculum": "curriculum", "model": "model@models.student",
        "objective": "objective@stages.distill_fast.objective", "optimizer": "optimizer@stages.sft_fast.optimizer",
    }  # fmt: skip
    for chosen in itertools.zip_longest(*map(names, groups)):
        given = [f"{key}={name}" for key, name in zip(groups.values(), chosen, strict=True) if name]
        files = GIVEN if chosen[0] in ("gsm8k", "records") else ()
        compose("~experiment", *given, *files)


def test_the_reference_of_keys_is_current():
    text = (config.conf_folder() / "README.md").read_text(encoding="utf-8")
    assert text == key_reference.reference(), "run python -m mindspore_impl.curriculum.key_reference"


def test_every_key_has_a_meaning():
    rows = [line.split(" | ") for line in key_reference.reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row[0] for row in rows if not row[-1].strip(" |") and not row[1].startswith("see ")] == []


BASES = {
    "optimizer/adamw": OptimizerOptions, "runtime/auto": RuntimeOptions, "objective/topk_kd": ObjectiveOptions,
    "export/fp16": ExportOptions, "lora/attention": LoraOptions, "model/tiny_student": ModelOptions,
    **{f"stage/{name}": kind for name, kind in KINDS.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_a_default_is_stated_once(name):
    """In its dataclass: a group's base file says only what differs from it."""
    stated = yaml.safe_load((config.conf_folder() / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    defaults = {field.name: field.default for field in dataclasses.fields(BASES[name]) if field.name != "kind"}
    assert {key: value for key, value in stated.items() if key in defaults and defaults[key] == value} == {}


def test_mixture_is_one_line():
    composed = compose("stages.sft_fast.data.mixture={reasoning:3,fast:1}")
    assert composed.stages["sft_fast"].data.mixture == {"reasoning": 3.0, "fast": 1.0}


@pytest.mark.parametrize("name", ["quickstart", "quickstart_seeds", "gsm8k"])
def test_trap_17_distillation_has_a_control_with_equal_tokens(name):
    stages = compose(f"experiment={name}", *(GIVEN if name == "gsm8k" else ())).stages
    distilled, control = stages["distill_fast"], stages["control"]
    assert control.init == distilled.init
    assert control.train.max_steps == distilled.train.max_steps
    assert control.data.rows * control.data.sequence_length == distilled.data.rows * distilled.data.sequence_length
    assert control.optimizer == distilled.optimizer
