"""Typos, wrong types and missing values are refused alike, however they reach the configuration."""

import shutil

import pytest

from mindspore_impl import config
from mindspore_impl.curriculum import configuration
from mindspore_impl.errors import UserError
from mindspore_impl.schema import to_plain


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        configuration.compose(list(overrides))
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", "+", "++"])
@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("sede=3", "seed"),
        ("stages.teacher.train.max_stepz=3", "max_steps"),
        ("stages.distill_fast.objective.kd_wieght=0.5", "kd_weight"),
        ("models.student.hiden_size=4", "hidden_size"),
        ("data.sets.fast.noize=0.1", "noise"),
    ],
)
def test_typo_names_key_and_nearest(prefix, key, meant):
    message = refusal(prefix + key)
    assert key.split("=")[0] in message
    assert f"did you mean '{meant}'?" in message


def test_typo_in_yaml_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "conf"
    shutil.copytree(config.conf_folder(), folder)
    monkeypatch.setattr(config, "conf_folder", lambda: folder)
    assert configuration.compose([]).name == "quickstart"
    path = folder / "optimizer" / "adamw.yaml"
    path.write_text(path.read_text() + "max_grad_nrom: 1.0\n")
    message = refusal()
    assert "stages.teacher.optimizer.max_grad_nrom: unknown key; did you mean 'max_grad_norm'?" in message


@pytest.mark.parametrize("prefix", ["", "+", "++"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=true", "seed: expected a whole number, found True"),
        ("seed=1.5", "seed: expected a whole number"),
        ("seed=abc", "seed: expected a whole number, found 'abc'"),
        ("stages.teacher.optimizer.learning_rate=fast", "learning_rate: expected a number"),
        ("stages.teacher.optimizer.learning_rate=true", "learning_rate: expected a number"),
        ("stages.teacher.evaluate=1", "evaluate: expected true or false"),
        ("stages.teacher.kind=true", "stages.teacher.kind: True"),
        ("stages.teacher.kind=stf", "did you mean 'sft'?"),
        ("stages.teacher.init=true", "stages.teacher.init: expected text"),
        ("order=teacher", "order: expected a list"),
        ("stages.teacher.data.overlong=eror", "did you mean 'error'?"),
        ("stages.teacher.data.mixture={reasoning:many}", "mixture.reasoning: expected a number"),
    ],
)
def test_wrong_type(prefix, override, message):
    assert message in refusal(prefix + override)


def test_all_problems_in_one_message():
    message = refusal("sede=1", "stages.teacher.train.stepz=1", "seed=abc")
    assert "sede" in message and "stepz" in message and "'abc'" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment=quikstart", "did you mean 'quickstart'?"),
        ("runtime=cpux", "did you mean 'cpu'?"),
        ("experiment=gsm8k", "data.train: no value given"),
        ("seed", "expected key=value"),
        ("name=${nothing}", "nothing"),
        ("model@models.studnt=pangu_1b", "models.studnt"),
    ],
)
def test_unknown_choice_or_missing_value(override, message):
    assert message in refusal(override)


def test_stage_without_definition():
    assert "stages.more: not defined" in refusal("+stages.more.train.max_steps=3")


def test_int_becomes_float_and_null_stays():
    composed = configuration.compose(
        ["stages.teacher.optimizer.learning_rate=1", "stages.teacher.train.max_steps=null"]
    )
    assert composed.stages["teacher"].optimizer.learning_rate == 1.0
    assert composed.stages["teacher"].train.max_steps is None


def test_plain_form_round_trips():
    composed = configuration.compose([])
    assert configuration.validate(to_plain(composed)) == composed
