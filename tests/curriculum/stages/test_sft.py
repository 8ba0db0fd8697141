"""Passes over few rows. LoRA: what is refused, fingerprints, memory, and a whole curriculum over merged weights."""

import shutil

import numpy as np
import pytest

from mindspore_impl import checkpoint, files
from mindspore_impl.cli.convert_weights import FolderFormat, export_weights
from mindspore_impl.cli.train_mindformers import stage_files
from mindspore_impl.curriculum import resolve, runner
from mindspore_impl.curriculum.estimate import training_estimate
from mindspore_impl.curriculum.stages.sft import SftStage
from mindspore_impl.data.options import BatchOptions
from mindspore_impl.errors import UserError
from mindspore_impl.model.options import LoraOptions
from mindspore_impl.runtime import RuntimeOptions
from tests.curriculum.conftest import compose_quickly, plan, refusal, stage_file

LORA = "+lora@stages.sft_fast.lora=attention"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.r=0", "lora.r: 0"),
        ("lora.target_modules=[q_porj]", "lora.target_modules: 'q_porj' 'q_proj'"),
        ("lora.lora_alpha=0", "lora.lora_alpha: 0"),
        ("lora.dropout=0.1", "lora.dropout:"),
        ("init=null", "stages.sft_fast.lora: stages.sft_fast.init"),
    ],
)
def test_what_cannot_work_is_refused(override, words):
    message = refusal(LORA, f"stages.sft_fast.{override}")
    assert [word for word in words.split() if word not in message] == [], message


def test_the_options_are_part_of_the_fingerprint():
    full, eight, wide = (plan(*more) for more in ([], [LORA], [LORA, "stages.sft_fast.lora.r=9"]))
    for name, count in (("sft_fast", 3), ("distill_fast", 3), ("sft_reasoning", 1)):
        assert len({each[name].fingerprint for each in (full, eight, wide)}) == count


def test_frozen_weights_need_no_gradient_and_no_moments():
    model = compose_quickly("model@models.student=pangu_1b").models["student"]
    stage = SftStage(data=BatchOptions(sequence_length=4096, rows=1))
    adapters = LoraOptions(r=8, target_modules=["q_proj", "k_proj"])
    full, frozen = (training_estimate(model, stage.data, lora, RuntimeOptions()) for lora in (None, adapters))
    pairs = 26 * 8 * ((1536 + 1536) + (1536 + 768))
    assert (full["trained"], frozen["trained"]) == (1_155_912_192, pairs)
    assert frozen["parameters"] == 1_155_912_192 + pairs
    assert full["bytes"] - frozen["bytes"] == 12 * 1_155_912_192 - 16 * pairs + 4 * 153376 * 1536


@pytest.mark.parametrize(("rows", "warned"), [(64, True), (1, False)])
def test_a_step_of_many_passes_is_warned_about(tmp_path, ms_runtime, monkeypatch, capsys, rows, warned):
    def train(job):
        weights, sha256 = {"w": np.zeros(1, np.float32)}, job.tokenizer_sha256
        checkpoint.save(job.folder / "checkpoints", 1, weights, {}, {}, 1, tokenizer_sha256=sha256)
        return {"steps": job.steps}

    monkeypatch.setattr("mindspore_impl.training.trainer.train", train)
    few = ("order=[sft_reasoning]", "compare=[]", "data.sets.reasoning.count=24", "models.student.num_hidden_layers=1")
    stage = (f"data.rows={rows}", "train.num_train_epochs=1", "train.max_steps=null", "evaluate=false")
    run = (*few, *(f"stages.sft_reasoning.{each}" for each in stage), "tokenizer.vocab_size=110")
    metrics = stage_file(runner.run(compose_quickly(*run, f"run_dir={tmp_path / 'run'}")), "sft_reasoning")["metrics"]
    passes = metrics["steps"] * rows / metrics["data"]["rows_per_epoch"]
    assert metrics["data"]["epochs"] == pytest.approx(passes) and (passes > 1.1) == warned
    assert ("warning: stages.sft_reasoning.train.num_train_epochs" in capsys.readouterr().out) == warned


SMALL = [
    "experiment=quickstart",
    "runtime=cpu",
    "tokenizer.vocab_size=110",
    "order=[teacher,sft_reasoning,sft_fast,capture_fast,distill_fast]",
    "compare=[]",
    *(f"data.sets.{name}.count=60" for name in ("teacher_reasoning", "teacher_fast", "reasoning", "fast")),
    *(f"data.sets.{kind}_{mode}.count=8" for kind in ("validation", "test") for mode in ("reasoning", "fast")),
    *(f"models.{name}.{key}" for name in ("student", "teacher") for key in ("hidden_size=48", "num_hidden_layers=1")),
    *(f"stages.{name}.train.max_steps=4" for name in ("teacher", "sft_reasoning", "sft_fast", "distill_fast")),
    *(f"stages.{name}.evaluate=false" for name in ("teacher", "sft_reasoning", "sft_fast")),
    "evaluation.max_new_tokens=4",
    "stages.capture_fast.rollouts=null",
    "stages.capture_fast.sets=[fast]",
    "stages.distill_fast.rollouts=null",
    "stages.distill_fast.data.mixture={rollouts:0,fast:1}",
    LORA,
    "stages.sft_fast.train.select=best",
    "+lora@stages.distill_fast.lora=all_linear",
]


@pytest.mark.slow
def test_adapters_on_adapters_through_a_whole_curriculum(tmp_path, ms_runtime, capsys):
    """sft with LoRA -> distill with LoRA on top -> evaluate; what others open is plain and merged, wherever it lies."""
    run_dir = runner.run(compose_quickly(*SMALL, f"run_dir={tmp_path / 'run'}"))
    assert "r=16" in capsys.readouterr().out
    evaluated = files.read_json(next(run_dir.glob("stages/*_eval_distill_fast/stage.json")))["metrics"]
    assert evaluated["perplexity"]["validation_fast"]["perplexity"] > 1

    stage = {name: next(run_dir.glob(f"stages/*_{name}")) for name in ("sft_reasoning", "sft_fast", "distill_fast")}
    weights = checkpoint.read_weights(checkpoint.latest(stage["sft_reasoning"] / "checkpoints").path)
    for name, scale in (("sft_fast", 16 / 8), ("distill_fast", 32 / 16)):
        which = "best" if name == "sft_fast" else "last"
        pairs = checkpoint.read_arrays(checkpoint.selected(stage[name] / "checkpoints", which).weights_path)
        assert pairs and all(".lora_" in key for key in pairs)
        merged = resolve.open_weights(stage[name], which)
        assert set(merged.shapes) == set(weights)
        for key, value in weights.items():
            stem = "base_model.model." + key.removesuffix("weight") + "lora_"
            if stem + "A.weight" in pairs:
                value = value + scale * (pairs[stem + "B.weight"] @ pairs[stem + "A.weight"])
                assert not np.array_equal(value, weights[key])
            weights[key] = value
            np.testing.assert_allclose(merged.read(key), value, rtol=1e-6, atol=1e-7, err_msg=key)

    shutil.copytree(run_dir, tmp_path / "elsewhere")
    shutil.rmtree(run_dir)
    moved = tmp_path / "elsewhere"
    export_weights(moved, tmp_path / "hf", FolderFormat("fp32"))  # the run's last stage
    exported = checkpoint.open_weights(tmp_path / "hf")
    for key, value in weights.items():
        np.testing.assert_allclose(exported.read(key), value, rtol=1e-6, atol=1e-7, err_msg=key)

    # The same place in another run: a path as init, through config.yaml of the run that it lies in.
    step = next((moved / "stages").glob("*_distill_fast/checkpoints/step_*"))
    np.testing.assert_array_equal(
        resolve.open_weights(step).read("model.norm.weight"), exported.read("model.norm.weight")
    )
    shutil.copytree(step, tmp_path / "lone")
    with pytest.raises(UserError, match="lone: .*LoRA"):
        resolve.open_weights(tmp_path / "lone")

    capsys.readouterr()
    runner.run(compose_quickly(*SMALL, f"run_dir={moved}"))  # nothing is trained again
    assert capsys.readouterr().out.count("finished before, skipped") == 6
    config = compose_quickly(*SMALL, f"run_dir={moved}", "stages.distill_fast.lora=null")
    with pytest.raises(UserError, match=r"LoRA.*tools/convert_weights\.py export"):
        stage_files(config, "distill_fast")

    changed = next(moved.glob("stages/*_sft_reasoning"))
    shutil.rmtree(changed)
    with pytest.raises(UserError, match="'sft_reasoning'"):
        resolve.open_weights(next(moved.glob("stages/*_sft_fast")))
