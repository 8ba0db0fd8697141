"""Every file of conf/ says what it is for, composes, and leaves no knob unnamed."""

import dataclasses

import pytest

from mindspore_impl import config
from mindspore_impl.curriculum import configuration

FILES = sorted(config.conf_folder().rglob("*.yaml"))
FILES = [f for f in FILES if f.parent.name != "selection"]  # recipes of another command: tests/data/selection
GIVEN = {
    "gsm8k": ["data.train=a", "data.test=b"],
    "paper_1b": ["data.train=a", "data.test=b"],
    "paper_1b_balanced": ["data.train=a", "data.test=b"],
    "records": ["data.train=a", "data.test=b"],
    "smollm2_kd": ["data.train=a", "data.test=b"],
}


def names(group: str) -> list[str]:
    return [f.stem for f in FILES if f.parent.name == group and not f.stem.startswith("_")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(config.conf_folder())))
def test_opens_with_purpose_and_command(path):
    head = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    comment = [line for line in head[:8] if line.startswith("#")]
    assert len(comment) >= 2
    assert any("python tools/train.py" in line for line in comment)


def commands_of(path) -> list[list[str]]:
    """The overrides of every command in a file's opening comment; a backslash joins lines, options are left out."""
    text = "\n".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    found = [line.split("tools/train.py", 1)[1] for line in lines if line.startswith("python tools/train.py")]
    return [[word for word in line.split() if not word.startswith("--")] for line in found]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(config.conf_folder())))
def test_commands_in_the_head_compose(path):
    assert commands_of(path)
    for overrides in commands_of(path):
        assert all("=" in word for word in overrides), overrides
        configuration.compose(overrides)


@pytest.mark.parametrize("name", names("experiment"))
def test_experiment_composes(name):
    composed = configuration.compose([f"experiment={name}", *GIVEN.get(name, [])])
    assert composed.name == name
    assert composed.order


@pytest.mark.parametrize("group", ["data", "runtime", "curriculum"])
def test_group_composes(group):
    for name in names(group):
        extra = GIVEN.get(name, [])
        configuration.compose(["~experiment", f"{group}={name}", *extra])


def test_model_and_objective_and_optimizer_groups_compose():
    for name in names("model"):
        configuration.compose([f"model@models.student={name}"])
    for name in names("objective"):
        configuration.compose([f"objective@stages.distill_fast.objective={name}"])
    for name in names("optimizer"):
        configuration.compose([f"optimizer@stages.sft_fast.optimizer={name}"])


def test_every_field_stands_in_conf():
    """A knob that exists only in code cannot be found by reading conf/."""
    plain = configuration.compose([])[0]
    composed = configuration.compose([])

    def missing(options, entry, path):
        for field in dataclasses.fields(options):
            value, where = getattr(options, field.name), f"{path}.{field.name}"
            if field.name not in entry:
                yield where
            elif dataclasses.is_dataclass(value):
                yield from missing(value, entry[field.name], where)

    lacking = list(missing(composed, plain, ""))
    for name, stage in composed.stages.items():
        lacking += missing(stage, plain["stages"][name], f"stages.{name}")
    for name, dataset in composed.data.sets.items():
        lacking += missing(dataset, plain["data"]["sets"][name], f"data.sets.{name}")
    for name, model in composed.models.items():
        lacking += missing(model, plain["models"][name], f"models.{name}")
    assert lacking == []


def test_mixture_is_one_line():
    composed = configuration.compose(["stages.sft_fast.data.mixture={reasoning:3,fast:1}"])
    assert composed.stages["sft_fast"].data.mixture == {"reasoning": 3.0, "fast": 1.0}


@pytest.mark.parametrize("name", ["quickstart", "quickstart_seeds", "gsm8k"])
def test_trap_17_distillation_has_a_control_with_equal_tokens(name):
    stages = configuration.compose([f"experiment={name}", *GIVEN.get(name, [])]).stages
    distilled, control = stages["distill_fast"], stages["control"]
    assert control.init == distilled.init
    assert control.train.max_steps == distilled.train.max_steps
    assert control.data.rows * control.data.sequence_length == distilled.data.rows * distilled.data.sequence_length
    assert control.optimizer == distilled.optimizer
