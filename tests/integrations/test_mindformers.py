"""Our types inside mindformers: its Trainer on the CPU repeats a stage of ours; batches, typos, what it cannot do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindspore_impl.cli.train_mindformers import stage_files
from mindspore_impl.curriculum.configuration import compose
from mindspore_impl.data.options import BatchOptions, ListProgramsSet
from mindspore_impl.data.sources import load_set
from mindspore_impl.errors import UserError
from mindspore_impl.text.options import TokenizerOptions
from tests.data.small import trained_on

ROOT = Path(__file__).resolve().parents[2]
SETS = ("teacher_reasoning", "teacher_fast", "reasoning", "fast")
STEPS = 5
SMALL = [
    "experiment=quickstart",
    "runtime=cpu",
    "tokenizer.vocab_size=110",
    "order=[teacher,sft_fast,capture_fast,distill_fast]",
    "compare=[]",
    *(f"data.sets.{name}.count=60" for name in SETS),
    *(f"models.{name}.{key}" for name in ("student", "teacher") for key in ("hidden_size=48", "num_hidden_layers=1")),
    *(f"stages.{name}.{setting}" for name in ("teacher", "sft_fast", "distill_fast")
      for setting in (f"train.max_steps={STEPS}", "evaluate=false", "data.validation=[]")),
    "stages.sft_fast.init=null",
    "stages.capture_fast.rollouts=null",
    "stages.capture_fast.sets=[fast,reasoning]",
    "stages.distill_fast.rollouts=null",
    "stages.distill_fast.data.mixture={rollouts:0,fast:2,reasoning:1}",
    "stages.distill_fast.train.logging_steps=1",
]  # fmt: skip
PROGRAM = """
import json, sys
from pathlib import Path
from mindspore import Callback
from mindspore_impl.integrations.mindformers import train

class Numbers(Callback):
    rows = []
    def on_train_step_end(self, run_context):
        loss, overflow, scale, rate, norm = run_context.original_args().net_outputs
        assert not overflow.asnumpy() and scale.asnumpy() == 1
        self.rows.append([float(value.asnumpy()) for value in (loss, rate, norm)])

train(Path(sys.argv[1]), [Numbers()])
Path("numbers.json").write_text(json.dumps(Numbers.rows))
"""


@pytest.mark.slow
def test_mindformers_trainer_repeats_a_distill_stage(tmp_path, monkeypatch):
    """A curriculum is run; a stage of it as a YAML, run by mindformers' Trainer in a process of its own, gives the same
    losses, rates, gradient norms and weights."""
    from mindspore_impl import checkpoint
    from mindspore_impl.cli import train_mindformers
    from mindspore_impl.curriculum import runner

    monkeypatch.chdir(tmp_path)
    run_dir = runner.run(compose([*SMALL, f"run_dir={tmp_path / 'run'}"]))
    assert train_mindformers.main(["write", "distill_fast", "kd.yaml", *SMALL, f"run_dir={tmp_path / 'run'}"]) == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, "kd.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    reported = done.stdout + done.stderr
    assert len(re.findall(r"loss:\[ *\d+\.\d+", reported)) == STEPS  # MFLossMonitor's lines

    (stage,) = run_dir.glob("stages/*_distill_fast")
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    ours = np.array([[line["loss"], line["learning_rate"], line["grad_norm"]] for line in lines])
    theirs = np.array(json.loads((tmp_path / "numbers.json").read_text()))
    assert ours.shape == theirs.shape == (STEPS, 3)
    np.testing.assert_allclose(theirs[:, 1], ours[:, 1], rtol=1e-6)
    np.testing.assert_allclose(theirs[:, [0, 2]], ours[:, [0, 2]], rtol=5e-5)

    (saved,) = (tmp_path / "kd" / "checkpoint_network" / "rank_0").glob(f"*-1_{STEPS}.safetensors")
    expected, found = map(checkpoint.read_weights, (checkpoint.latest(stage / "checkpoints").path, saved))
    assert set(found) == set(expected)  # so that a stage can start from it
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return trained_on(load_set("fast", ListProgramsSet(count=40), 1), tmp_path_factory.mktemp("tokenizer"), 110)


def packed(trained, **changes):
    from mindspore_impl.integrations.mindformers import PackedData

    batch = BatchOptions(mixture={"fast": 1.0}, sequence_length=64, rows=4)
    sets = {"fast": ListProgramsSet(count=20)}
    values = {"max_steps": 3, "seed": 5, "tokenizer": TokenizerOptions(path=str(trained.path)), "sets": sets}
    return PackedData(**{**values, "batch": batch, **changes})


def test_data_set_holds_the_batches_of_our_stream(tokenizer, tmp_path, ms_runtime):
    """Labels and a rollout file, in the order in which the objective takes the columns."""
    from mindspore_impl.data.batches import BatchStream
    from mindspore_impl.data.rollouts import Rollout, read_rollouts, to_sample, write_rollouts
    from mindspore_impl.integrations.mindformers import packed_dataset
    from mindspore_impl.losses.objective import FIELDS
    from mindspore_impl.text.chat import render
    from mindspore_impl.text.records import Message

    path = tmp_path / "rollouts.jsonl"
    write_rollouts(path, (Rollout(f"r{i}", (Message("user", f"list {'abcdef'[i]}"),), "fast", None, None, "a b", "stop")
                          for i in range(6)))  # fmt: skip
    batch = BatchOptions(mixture={"fast": 2.0, "rollouts": 1.0}, sequence_length=64, rows=4)
    data = packed(tokenizer, rollouts=str(path), batch=batch)
    samples = {
        "fast": [render(record, tokenizer) for record in load_set("fast", data.sets["fast"], 0)],
        "rollouts": [to_sample(rollout, tokenizer) for rollout in read_rollouts(path, tokenizer, True)],
    }
    stream = BatchStream(samples, batch, 5)
    dataset = packed_dataset(data)
    assert dataset.get_dataset_size() == 3
    assert dataset.get_col_names() == ["input_ids", "target_ids", "loss_weight", "segment_ids", "position_ids"]
    for step, columns in enumerate(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)):
        (expected,) = stream.step(step)
        for name, column in zip(FIELDS, columns, strict=True):
            np.testing.assert_array_equal(column, getattr(expected, name), err_msg=name)
    by_epochs = packed_dataset(packed(tokenizer, max_steps=None, num_train_epochs=2.0))
    alone = BatchStream({"fast": samples["fast"]}, BatchOptions(mixture={"fast": 1.0}, sequence_length=64, rows=4), 5)
    assert by_epochs.get_dataset_size() == alone.steps_for_epochs(2.0) > 1


@pytest.mark.parametrize(("changes", "message"), [
    ({"max_steps": None}, "data_loader: .*max_steps and num_train_epochs"),
    ({"num_train_epochs": 1.0}, "data_loader: .*max_steps and num_train_epochs"),
    ({"tokenizer": TokenizerOptions()}, "data_loader.tokenizer.path: "),
    ({"batch": BatchOptions(gradient_accumulation_steps=2)}, "data_loader.batch.gradient_accumulation_steps: "),
])  # fmt: skip
def test_data_that_cannot_be_trained_on_is_refused(changes, message, tokenizer, ms_runtime):
    from mindspore_impl.integrations.mindformers import packed_dataset

    with pytest.raises(UserError, match=message):
        packed_dataset(packed(tokenizer, **changes))


@pytest.fixture(scope="module")
def registered(ms_runtime, tmp_path_factory):
    """mindformers' builders, with our types known to them."""
    from mindspore_impl import runtime
    from mindspore_impl.integrations.mindformers import register

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("mindformers"))
        register(runtime.RuntimeOptions(device="CPU", threads=2))
        from mindformers.core.loss import build_loss
        from mindformers.core.lr import build_lr
        from mindformers.models.build_config import build_model_config
        from mindformers.wrapper import build_wrapper

        yield {"config": build_model_config, "loss": build_loss, "lr": build_lr, "wrapper": build_wrapper}


NEEDED = {"loss": ("model",), "wrapper": ("network", "optimizer")}


@pytest.mark.parametrize(("builder", "given", "message"), [
    ("config", {"type": "PanguPosttrainConfig", "wieghts": "w"}, "model_config.wieghts: .*mean 'weights'"),
    ("config", {"type": "PanguPosttrainConfig", "model": {"hiden_size": 8}}, "model.hiden_size: .*'hidden_size'"),
    ("loss", {"type": "PanguObjective", "kd_wieght": 0.5}, "model_config.loss.kd_wieght: .*mean 'kd_weight'"),
    ("lr", {"type": "PanguSchedule", "total_steps": 5, "lr_scheduler_type": "cosin"}, "lr_scheduler_type: "),
    ("wrapper", {"type": "PanguTrainStep", "max_grad_nrom": 1.0}, "runner_wrapper.max_grad_nrom: "),
])  # fmt: skip
def test_a_typo_in_the_yaml_is_refused(builder, given, message, registered):
    with pytest.raises(UserError, match=message):
        registered[builder](given, default_args=dict.fromkeys(NEEDED.get(builder, ())))


def test_a_yaml_of_schema_1_is_read_in_todays_keys(tmp_path):
    from mindspore_impl.integrations.mindformers import _todays_keys

    old = {
        "model": {"model_config": {"type": "T", "model": {"num_layers": 2}}},
        "lr_schedule": {"schedule": "cosine"},
        "runner_wrapper": {"clip_norm": 1.0},
        "train_dataset": {"data_loader": {"steps": 3, "batch": {"accumulation": 1}, "sets": {"a": {"first": 1}}}},
    }
    (tmp_path / "old.yaml").write_text(json.dumps(old))
    found = _todays_keys(tmp_path / "old.yaml")
    assert found["model"]["model_config"]["model"] == {"num_hidden_layers": 2}
    assert found["lr_schedule"] == {"lr_scheduler_type": "cosine"} and found["runner_wrapper"] == {"max_grad_norm": 1.0}
    loader = found["train_dataset"]["data_loader"]
    assert loader["max_steps"] == 3 and loader["batch"] == {"gradient_accumulation_steps": 1}
    assert loader["sets"]["a"]["skip"] == 1


def test_files_that_are_no_training_are_refused(tmp_path, ms_runtime, monkeypatch):
    from mindspore_impl.integrations.mindformers import train

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"nowhere\.yaml: .*tools/train_mindformers\.py"):
        train(Path("nowhere.yaml"))
    Path("empty.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"empty\.yaml: .*train_dataset_task"):
        train(Path("empty.yaml"))


def test_weights_of_another_tokenizer_are_refused(tokenizer, tmp_path, ms_runtime):
    from mindspore_impl import checkpoint
    from mindspore_impl.integrations.mindformers import train

    weights, other = {"w": np.zeros(1, np.float32)}, "0" * 64
    checkpoint.save(tmp_path, 1, weights, {}, {}, 1, tokenizer_sha256=other)
    loader = {"tokenizer": {"path": str(tokenizer.path)}}
    given = {"model": {"model_config": {"weights": str(tmp_path)}}, "train_dataset": {"data_loader": loader}}
    (tmp_path / "kd.yaml").write_text(json.dumps({"schema": 2, **given, "train_dataset_task": {"type": "x"}}))
    with pytest.raises(UserError, match=f"{other}.*{tokenizer.sha256}"):
        train(tmp_path / "kd.yaml")


ADAPTERS = ["stages.sft_fast.init=teacher", "stages.sft_fast.model=teacher", "stages.distill_fast.model=teacher"]
ADAPTERS += ["+lora@stages.sft_fast.lora=attention"]


@pytest.mark.parametrize(("stage", "overrides", "message"), [
    ("distil_fast", [], "'distil_fast' .*'distill_fast'"), ("capture_fast", [], "'capture_fast' "),
    ("distill_fast", [], "tokenizer.model: .*'distill_fast'"), ("sft_fast", ADAPTERS, "stages.sft_fast.lora: "),
])  # fmt: skip
def test_stages_that_mindformers_cannot_train_are_refused(stage, overrides, message, tmp_path, ms_runtime):
    config = compose([*SMALL, f"run_dir={tmp_path / 'run'}", *overrides])
    with pytest.raises(UserError, match=message):
        stage_files(config, stage)
