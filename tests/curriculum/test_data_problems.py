"""What the data and headers show is told, by the key of the stage that is wrong, before any stage begins."""

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from mindspore_impl import checkpoint, files
from mindspore_impl.curriculum import configuration, runner
from mindspore_impl.data.teacher_store import StoreHeader
from mindspore_impl.data.teacher_store_writer import StoreWriter
from mindspore_impl.errors import UserError
from mindspore_impl.model import weights
from mindspore_impl.model.adapter_file import Adapters, adapter_shapes, write_adapters
from mindspore_impl.model.options import LoraOptions
from mindspore_impl.model.pangu import parameter_shapes
from tests.curriculum.conftest import compose_quickly, refusal
from tests.curriculum.test_runner import SMALL, calls  # noqa: F401
from tests.model.hf_folders import write_safetensors

FEW = [
    *SMALL,
    *(f"data.sets.{part}_{mode}.count=9" for part in ("validation", "test") for mode in ("reasoning", "fast")),
]
CURRICULUM = ("experiment=quickstart_curriculum", "data.sets.reasoning.count=30", "stages.score.rollouts=null")
GIVEN = ("order=[sft_fast]", "compare=[]")


@pytest.fixture
def refused(tmp_path, calls, tokenizer, monkeypatch):  # noqa: F811
    """refused(*overrides) -> the message of a run that is refused before its first stage."""
    monkeypatch.setattr(runner, "prepare_tokenizer", lambda context: tokenizer)

    def run(*overrides):
        with pytest.raises(UserError) as caught:
            runner.run(compose_quickly(*FEW, f"run_dir={tmp_path / 'run'}", *overrides))
        assert calls == [] and not (tmp_path / "run" / "stages").exists()
        return str(caught.value)

    return run


def write_lines(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            "sft_fast.data.sequence_length=40",
            "stages.sft_fast.data.sequence_length: stages.sft_fast.data.overlong=drop",
        ),
        (
            "sft_fast.data.sequence_length=20 stages.sft_fast.data.overlong=drop",
            "data.sets.fast: stages.sft_fast.data.sequence_length=20",
        ),
        ("control.data.mixture={fast:1,reasoning:1e-6}", "stages.control.data.mixture.reasoning"),
        ("control.data.order=easy_to_hard", "stages.control.data.order=easy_to_hard difficulty_loss"),
        (
            "teacher.seed=1 evaluation.sequence_length=40 evaluation.perplexity=[reasoning]",
            "evaluation.sequence_length:",
        ),
        (
            "sft_fast.data.sequence_length=40 evaluation.max_new_tokens=4090",  # all are told
            "stages.sft_fast.data.sequence_length: evaluation.max_new_tokens: 4090 models.student models.teacher 4096",
        ),
        (
            "rollout_fast.sampling.max_new_tokens=4090",
            "stages.rollout_fast.sampling.max_new_tokens: 4090 4096",
        ),
        ("rollout_fast.prompts=[fast,fast]", "stages.rollout_fast.prompts:"),
        (
            "capture_fast.sets=[reasoning] stages.capture_fast.sequence_length=40",
            "stages.capture_fast.sequence_length: stages.capture_fast.capture.overlong=drop",
        ),
        (  # the prompts alone, of about 20 tokens
            "capture_fast.sequence_length=12 stages.distill_fast.data.sequence_length=13",
            "stages.capture_fast.sequence_length: stages.distill_fast.data.sequence_length:",
        ),
        (
            "teacher.seed=1 models.teacher.vocab_size=160 models.student.vocab_size=160",
            "models.student.vocab_size: 160 110 stages.distill_fast.store",
        ),
    ],
)
def test_what_the_data_show_names_the_key(refused, overrides, words):
    message = refused(*f"stages.{overrides}".split())
    assert [word for word in words.split() if word not in message] == [], message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("score.sequence_length=40", "stages.score.sequence_length: stages.score.score.overlong=drop"),
        ("shuffled.data.sequence_length=40", "stages.shuffled.data.sequence_length:"),
        ("answers.prompts=[validation_reasoning] stages.score.rollouts=answers", "stages.score.rollouts:"),
    ],
)
def test_stages_that_make_records_are_checked_too(refused, overrides, words):
    message = refused(*CURRICULUM, *f"stages.{overrides}".split())
    assert [word for word in words.split() if word not in message] == [], message


def test_a_prompt_without_a_task_is_found_before_its_answers_are_sampled(refused, tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write_lines(tmp_path / "asked.jsonl", {"id": "r7", "messages": turns})
    asked = f"data.sets.asked={{source:records,path:{path}}}"
    message = refused(*CURRICULUM, asked, "stages.answers.prompts=[asked]", "stages.score.rollouts=answers")
    assert "stages.right.rollouts: " in message and "stages.score.rollouts: " in message and "'r7'" in message


def test_a_store_from_elsewhere_is_compared_with_the_data(refused, tmp_path, tokenizer):
    order = "order=[teacher,sft_reasoning,sft_fast,distill_fast]"
    for size, tokenizer_sha256, words in (
        (110, "k" * 64, tokenizer.sha256[:16]),
        (160, tokenizer.sha256, "models.student.vocab_size: 110 160"),
        (110, tokenizer.sha256, "stages.distill_fast.data: record"),
    ):
        writer = StoreWriter(tmp_path / "store", StoreHeader("t" * 64, tokenizer_sha256, size, 2, 1.0, "top_k"))
        row = (np.array([[5, 6]]), np.log(np.array([[0.75, 0.25]], np.float32)), np.array([-1e4], np.float32))
        writer.add(np.array([1, 3, 4]), np.array([False, False, True]), *row)
        writer.close()
        given = (f"stages.distill_fast.store={tmp_path}/store", "stages.distill_fast.data.mixture={fast:1,rollouts:0}")
        message = refused(order, "compare=[]", *given, "stages.distill_fast.rollouts=null")
        assert [word for word in words.split() if word not in message] == [], message
        shutil.rmtree(tmp_path / "store")


def test_a_full_disk_is_told_with_both_numbers(refused, monkeypatch):
    free = SimpleNamespace(free=10_000_000)
    monkeypatch.setattr("mindspore_impl.curriculum.estimate.shutil.disk_usage", lambda folder: free)
    message = refused()
    # Two checkpoints of the teacher alone have 2 x 12 bytes for each of its 1.2 million parameters.
    needed = float(message.partition("write about ")[2].split()[0])
    assert "run_dir: " in message and "0.01 GB" in message and "stages.teacher" in message and 0.03 < needed < 0.1


def test_missing_validation_sets_are_refused_by_key():
    message = refusal("stages.teacher.data.validation=[]", "stages.teacher.train.eval_steps=5")
    assert "stages.teacher.train.eval_steps: " in message and "stages.teacher.data.validation" in message


def test_the_headers_of_all_weights_are_read(tmp_path):
    student = dataclasses.replace(compose_quickly().models["student"], vocab_size=110)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(student).items()}
    write_safetensors(tmp_path / "right.safetensors", arrays)
    order = "order=[sft_fast,control]"
    given = ("compare=[]", "tokenizer.vocab_size=110", "evaluation.accuracy=[]")
    narrow = dict(arrays, **{"model.norm.weight": np.zeros(9, np.float32)})
    write_safetensors(tmp_path / "narrow.safetensors", narrow)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "right.safetensors").read_bytes()[:-4])
    (tmp_path / "bad.gguf").write_bytes(b"GGUX")
    checkpoint.save(tmp_path / "checkpoints", 1, arrays, {}, {}, keep=1)
    lora = LoraOptions(2, 4.0, ["q_proj"])
    (tmp_path / "adapters").mkdir()
    pairs = {
        name: np.zeros(shape, np.float32) for name, shape in adapter_shapes(parameter_shapes(student), lora).items()
    }
    write_adapters(tmp_path / "adapters" / "weights.safetensors", pairs, Adapters(lora, "b" * 64))
    path = next((tmp_path / "checkpoints").glob("step_*/weights.safetensors"))
    first = f"stages.sft_fast.init={tmp_path}/right.safetensors"
    for name in ("narrow.safetensors", "cut.safetensors", "bad.gguf", "adapters"):
        message = refusal(order, *given, first, f"stages.control.init={tmp_path}/{name}")
        assert f"stages.control.init: {tmp_path}/{name}" in message and "stages.sft_fast" not in message, message
    teacher = [f"evaluation.{key}" for key in (f"teacher={tmp_path}/narrow.safetensors", "teacher_model=student")]
    message = refusal("order=[sft_fast]", *given, first, *teacher, "evaluation.teacher_kl=[validation_fast]")
    assert "evaluation.teacher: " in message
    path.write_bytes(path.read_bytes()[:-4])
    message = refusal(order, *given, first, f"stages.control.init={tmp_path}/checkpoints")
    assert f"stages.control.init: {tmp_path}/checkpoints" in message


def test_a_run_is_resumed_from_anywhere(tmp_path, calls, monkeypatch):  # noqa: F811
    """Relative paths, of an older run's config.yaml too, mean what they meant; no stage runs again."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    monkeypatch.chdir(home)
    write_lines(home / "mine.jsonl", *({"prompt": f"question {n}?", "answer": f"answer {n}"} for n in range(40)))
    student = dataclasses.replace(compose_quickly().models["student"], vocab_size=110)
    tensors = dict(weights.iter_tensors(weights.random_source(student, 1)))
    write_safetensors(home / "first.safetensors", tensors)
    composed = compose_quickly(
        *FEW, *GIVEN, "run_dir=run", "runtime.cache=cache", "data.sets.mine={source:prompt_answer,path:mine.jsonl}",
        "stages.sft_fast.init=./first.safetensors", "stages.sft_fast.data.mixture={mine:1}",
        "stages.sft_fast.evaluate=false", "tokenizer.train_on=[mine,reasoning]",
    )  # fmt: skip
    runner.run(composed)
    assert calls == ["sft_fast"]
    written = yaml.safe_load((home / "run" / "config.yaml").read_text())
    assert written["data"]["sets"]["mine"]["path"] == str(home / "mine.jsonl")
    assert written["stages"]["sft_fast"]["init"] == str(home / "first.safetensors")
    assert (written["run_dir"], written["runtime"]["cache"]) == (str(home / "run"), str(home / "cache"))
    (stage,) = (home / "run" / "stages").glob("*/stage.json")
    assert files.read_json(stage)["inputs"] == {"init": str(home / "first.safetensors")}
    monkeypatch.chdir(away)
    runner.run(configuration.reopen(home / "run"))
    old = {**written, "data": {**written["data"], "sets": {**written["data"]["sets"]}}}
    old["data"]["sets"]["mine"] = {**written["data"]["sets"]["mine"], "path": "mine.jsonl"}
    (home / "run" / "config.yaml").write_text(yaml.safe_dump(old))
    monkeypatch.chdir(home)
    runner.run(configuration.reopen(home / "run"))
    assert calls == ["sft_fast"] and os.listdir(away) == []
