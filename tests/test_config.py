"""Typos, wrong types and missing values are refused alike, in every form; files of the user's work from anywhere."""

import shutil

import pytest

from mindspore_impl import config
from mindspore_impl.curriculum import configuration
from mindspore_impl.errors import UserError
from mindspore_impl.schema import to_plain

# Override: what the message must name.
WRONG = {
    "sede=3": "sede: 'seed'",
    "stages.teacher.train.max_stepz=3": "stages.teacher.train.max_stepz: 'max_steps'",
    "stages.distill_fast.objective.kd_wieght=0.5": "stages.distill_fast.objective.kd_wieght: 'kd_weight'",
    "models.student.hiden_size=4": "models.student.hiden_size: 'hidden_size'",
    "data.sets.fast.noize=0.1": "data.sets.fast.noize: 'noise'",
    "seed=abc": "seed: 'abc'",
    "seeds=[1.5]": "seeds[0]: 1.5",
    "evaluation.rows=true": "evaluation.rows: True",
    "stages.teacher.optimizer.learning_rate=fast": "stages.teacher.optimizer.learning_rate: 'fast'",
    "stages.sft_fast.optimizer.learning_rate=true": "stages.sft_fast.optimizer.learning_rate: True",
    "stages.teacher.evaluate=1": "stages.teacher.evaluate: 1",
    "stages.control.kind=stf": "stages.control.kind: 'stf' 'sft'",
    "stages.sft_reasoning.kind=true": "stages.sft_reasoning.kind: True",
    "stages.teacher.init=true": "stages.teacher.init: True",
    "order=teacher": "order: 'teacher'",
    "stages.teacher.data.overlong=eror": "stages.teacher.data.overlong: 'eror' 'error'",
    "stages.teacher.data.mixture={reasoning:many}": "stages.teacher.data.mixture.reasoning: 'many'",
}


def refusal(*overrides: str, config_dir=None) -> str:
    with pytest.raises(UserError) as caught:
        configuration.compose(list(overrides), config_dir)
    return str(caught.value)


def lacking(message: str, words: str) -> list[str]:
    return [word for word in words.split() if word not in message]


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_every_typo_and_wrong_type_is_named_in_one_message(prefix):
    message = refusal(*(prefix + override for override in WRONG))
    assert [words for words in WRONG.values() if lacking(message, words)] == [], message
    assert len(message.splitlines()) == len(WRONG)


def test_typo_in_yaml_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "conf"
    shutil.copytree(config.conf_folder(), folder)
    monkeypatch.setattr(config, "conf_folder", lambda: folder)
    path = folder / "optimizer" / "adamw.yaml"
    path.write_text(path.read_text() + "\nmax_grad_nrom: 1.0\n")
    assert lacking(refusal(), "stages.teacher.optimizer.max_grad_nrom: 'max_grad_norm'") == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("experiment=quikstart", "'quickstart'"),
        ("runtime=cpux", "'cpu'"),
        ("experiment=gsm8k", "data.train: data.train=VALUE"),
        ("seed", "'seed' key=value"),
        ("name=${nothing}", "nothing"),
        ("model@models.studnt=pangu_1b", "models.studnt"),
        ("model=pangu_1b", "'model'"),
        ("+stages.more.train.max_steps=3", "stages.more: kind sft"),
        ("hydra.run.dir=x", "hydra.run.dir=x run_dir="),
        ("hydra/launcher=joblib", "hydra/launcher=joblib --multirun"),
        ("+hydra.job.chdir=true", "hydra.job.chdir=true run_dir="),
        ("stages.教师.train.max_steps=3", "stages.教师.train.max_steps=3 ASCII"),
        ("order=[甲,乙]", "order=[甲,乙] quotes"),
        ("data.train=a,b.jsonl", "data.train"),
        ("data.train=x(1)", "data.train=x(1) quotes"),
    ],
)
def test_unknown_choice_missing_value_or_unreadable_override(override, words):
    assert lacking(message := refusal(override), words) == [], message


@pytest.mark.parametrize("value", ["实验", "a=b", "a#b", "it's", "a b", "'a,b'", '"a,\'b"'])
def test_special_characters_in_values(value):
    plain, _ = config.compose([f"data.train={value}"])
    assert plain["data"]["train"] == (value[1:-1] if value.startswith(("'", '"')) and value[1] == "a" else value)


def test_int_becomes_float_null_stays_and_the_plain_form_round_trips():
    overrides = ["stages.teacher.optimizer.learning_rate=1", "stages.teacher.train.max_steps=null"]
    composed = configuration.compose(overrides)
    assert composed.stages["teacher"].optimizer.learning_rate == 1.0
    assert composed.stages["teacher"].train.max_steps is None
    assert configuration.validate(to_plain(composed)) == composed


# --- the user's own files ---

MINE = "# @package _global_\ndefaults: [quickstart]\nname: mine\nseed: 7\n"


@pytest.mark.parametrize("place", ["experiments/mine.yaml", "实验, #1=it's/我的 (2).yaml", "quickstart.yaml"])
def test_an_experiment_file_from_anywhere(tmp_path, monkeypatch, place):
    """By a relative or an absolute path, with any name, even one of ours."""
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(MINE, encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path)
    for given in (place, str(path)):
        plain, folders = config.compose([f"experiment={given}", "seed=8"])
        assert (plain["name"], plain["seed"], plain["order"][0]) == ("mine", 8, "teacher")
        assert [folder.resolve() for folder in folders] == [path.parent]


def test_a_file_extends_one_beside_it_even_of_a_name_of_ours(tmp_path):
    (tmp_path / "quickstart.yaml").write_text(MINE.replace("quickstart", "rehearsal").replace("seed: 7", "seed: 6"))
    (tmp_path / "other.yaml").write_text(MINE.replace("name: mine", "name: other").replace("seed: 7", "compare: []"))
    plain, _ = config.compose([f"experiment={tmp_path / 'other.yaml'}"])
    assert (plain["name"], plain["seed"], plain["order"][-1]) == ("other", 6, "package")


def test_files_of_other_groups(tmp_path):
    for group, name in (("model", "tiny_student"), ("data", "list_programs"), ("sweep", "optuna_example")):
        text = (config.conf_folder() / group / f"{name}.yaml").read_text()
        text += {"model": "num_hidden_layers: 7\n", "data": "holdout: 0.5\n", "sweep": "direction: minimize\n"}[group]
        (tmp_path / f"{group}.yaml").write_text(text)
    plain, _ = config.compose(
        [f"model@models.student={tmp_path}/model.yaml", f"data={tmp_path}/data.yaml", f"sweep={tmp_path}/sweep.yaml"]
    )
    assert plain["models"]["student"]["num_hidden_layers"] == 7 and plain["sweep"]["direction"] == "minimize"
    assert plain["data"]["holdout"] == 0.5 and plain["models"]["teacher"].get("num_hidden_layers") != 7


def test_a_folder_of_groups(tmp_path, monkeypatch):
    folder = tmp_path / "my conf, it's #1"
    (folder / "experiment").mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "experiment" / "mine.yaml").write_text(MINE)
    (folder / "model" / "small.yaml").write_text("defaults: [tiny_student]\nhidden_size: 80\n")
    monkeypatch.chdir(tmp_path)
    plain, folders = config.compose(["experiment=mine", "model@models.student=small"], folder.relative_to(tmp_path))
    assert (plain["name"], plain["models"]["student"]["hidden_size"]) == ("mine", 80)
    assert folder / "experiment" in [each.resolve() for each in folders]
    (folder / "experiment" / "quickstart.yaml").write_text(MINE)
    assert "experiment/quickstart.yaml" in refusal("experiment=mine", config_dir=folder)
    assert "nowhere" in refusal(config_dir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINE.split("\n", 1)[1], "_global_"),
        (MINE.replace("quickstart", "quikstart"), "quikstart"),
        (MINE + "stages: [\n", "line"),
        (MINE + "sede: 1\n", "sede: 'seed'"),
        (MINE + "name: 实验\n".encode("gbk").decode("latin-1"), "UTF-8"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, words):
    """One without its package line, of an unknown base, that is no YAML, with a typo, or in another encoding."""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="latin-1")
    message = refusal(f"experiment={path}")
    assert lacking(message, words) == [], message
    assert "from_file" not in message and ("sede" in text or str(path) in message), message


def test_a_wrong_file_of_a_folder_is_named(tmp_path):
    path = tmp_path / "experiment" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(MINE.split("\n", 1)[1])
    assert str(path) in refusal("experiment=mine", config_dir=tmp_path)
    assert "none.yaml" in refusal("experiment=none.yaml")
