"""A stage that starts from a Hugging Face folder: a matching model is loaded, any other is refused with its key."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindspore_impl import files
from mindspore_impl.curriculum.stages.context import RunContext
from mindspore_impl.errors import UserError
from mindspore_impl.model import hf_config, weights
from tests.curriculum.conftest import compose_quickly, plan
from tests.curriculum.conftest import refusal as refused
from tests.model.hf_folders import write_folder, write_safetensors

ROOT = Path(__file__).resolve().parents[3]
OVERRIDES = ["order=[sft_fast]", "compare=[]", "tokenizer.vocab_size=110", "stages.sft_fast.evaluate=false"]


def student_folder(folder, size=110, seed=1, **changes):
    options = dataclasses.replace(compose_quickly().models["student"], vocab_size=size)
    tensors = dict(weights.iter_tensors(weights.random_source(options, seed)))
    described = hf_config.config_of(options, "PanguEmbedded", {}) | changes
    write_folder(folder, tensors, "F32", 2, **described)
    return tensors


def refusal(*overrides):
    return refused(*OVERRIDES, *overrides)


def test_a_stage_takes_a_folder_of_its_model(tmp_path):
    student_folder(tmp_path / "hf")
    assert plan(*OVERRIDES, f"stages.sft_fast.init={tmp_path}/hf")["sft_fast"].inputs == {"init": f"{tmp_path}/hf"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_theta": 4e6}, "models.student.rope_theta 10000.0 4000000.0"),
        ({"rms_norm_eps": 1e-6}, "models.student.rms_norm_eps 1e-05 1e-06"),
        ({"max_position_embeddings": 2048}, "models.student.max_position_embeddings 4096"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling: "),
        ({"vocab_size": 111}, "'model.embed_tokens.weight' [110, 96] [111, 96]"),
    ],
)
def test_a_folder_of_another_model_is_refused_before_anything_runs(tmp_path, changes, words):
    student_folder(tmp_path / "hf", **changes)
    found = refusal(f"stages.sft_fast.init={tmp_path}/hf")
    assert "stages.sft_fast.init: " in found and all(word in found for word in words.split()), found


def test_a_missing_shard_is_found_before_anything_runs(tmp_path):
    student_folder(tmp_path / "hf")
    (tmp_path / "hf" / "model-00001-of-00002.safetensors").unlink()
    assert "model-00001-of-00002.safetensors" in refusal(f"stages.sft_fast.init={tmp_path}/hf")


def test_a_teacher_is_checked_too(tmp_path):
    student_folder(tmp_path / "hf", rope_theta=4e6)
    found = refusal(
        "order=[capture_fast]", "stages.capture_fast.rollouts=null", "stages.capture_fast.sets=[fast]",
        f"stages.capture_fast.teacher={tmp_path}/hf", "stages.capture_fast.model=student",
    )  # fmt: skip
    assert "stages.capture_fast.teacher: " in found and "models.student.rope_theta" in found


def test_a_folder_without_a_separator_gets_a_hint(tmp_path, monkeypatch):
    student_folder(tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    found = refusal("stages.sft_fast.init=hf")
    assert "stages.sft_fast.init: " in found and "./hf" in found


def test_the_fingerprint_follows_the_weights_alone(tmp_path):
    def fingerprint():
        return plan(*OVERRIDES, f"stages.sft_fast.init={tmp_path}/hf")["sft_fast"].fingerprint

    student_folder(tmp_path / "hf")
    first = fingerprint()
    (tmp_path / "hf" / "README.md").write_text("notes")
    write_safetensors(tmp_path / "hf" / "consolidated.safetensors", {})
    assert fingerprint() == first
    (tmp_path / "hf").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "hf")
    assert fingerprint() == first
    student_folder(tmp_path / "hf", seed=2)
    assert fingerprint() != first


class _Tokenizer:
    def __init__(self, path, vocab_size=110):
        self.path, self.vocab_size, self.sha256 = path, vocab_size, files.sha256_file(path)


@pytest.fixture
def context(tmp_path, ms_runtime):
    (tmp_path / "mine.model").write_bytes(b"pieces")
    return RunContext(compose_quickly(*OVERRIDES), tmp_path / "run", {}, _Tokenizer(tmp_path / "mine.model"))


def test_the_weights_of_a_folder_reach_the_model(context, tmp_path):
    tensors = student_folder(tmp_path / "hf")
    model, digest = context.build_model("student", str(tmp_path / "hf"))
    assert digest == weights.identity(weights.open_hf(tmp_path / "hf"))
    for parameter in model.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), tensors[parameter.name], err_msg=parameter.name)


def test_a_wrong_vocabulary_is_refused(context, tmp_path):
    student_folder(tmp_path / "hf", size=120)
    with pytest.raises(UserError, match="(?s)models.student.vocab_size.*110.*120"):
        context.build_model("student", str(tmp_path / "hf"))
    context.config.models["student"].vocab_size = 100
    with pytest.raises(UserError, match="models.student.vocab_size: 100.*110"):
        context.build_model("student", str(tmp_path / "hf"))


def test_the_tokenizer_of_the_weights_must_be_the_runs(context, tmp_path):
    student_folder(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.model").write_bytes(b"other pieces")
    assert f"tokenizer.path={tmp_path}/hf/tokenizer.model" in refusal(f"stages.sft_fast.init={tmp_path}/hf")
    with pytest.raises(UserError, match=r"hf/tokenizer.model"):
        context.build_model("student", str(tmp_path / "hf"))
    (tmp_path / "hf" / "tokenizer.model").write_bytes(b"pieces")
    context.build_model("student", str(tmp_path / "hf"))


@pytest.mark.slow
def test_training_and_capture_from_folders_end_to_end(tmp_path):
    """`tools/train.py stages.X.init=HF_DIR`: trains from it, captures with another as teacher, exports the result."""
    small = [f"data.sets.{name}.count=40" for name in ("teacher_reasoning", "teacher_fast", "reasoning", "fast")]
    first = ["tools/train.py", *small, "order=[sft_reasoning]", "compare=[]", "tokenizer.vocab_size=110", "runtime=cpu",
             "stages.sft_reasoning.train.max_steps=2", "stages.sft_reasoning.evaluate=false"]  # fmt: skip
    call(*first, f"run_dir={tmp_path}/first")
    trained = f"{tmp_path}/first/stages/01_sft_reasoning"
    call("tools/convert_weights.py", "export", trained, f"{tmp_path}/hf", "--dtype=fp32")
    second = ["tools/train.py", *small, "order=[sft_fast,capture_fast]", "compare=[]", "runtime=cpu",
              f"tokenizer.path={tmp_path}/hf/tokenizer.model", f"stages.sft_fast.init={tmp_path}/hf",
              "stages.sft_fast.train.max_steps=2", "stages.sft_fast.evaluate=false",
              "stages.sft_fast.data.mixture={fast:1}", "stages.capture_fast.rollouts=null",
              "stages.capture_fast.sets=[fast]", "stages.capture_fast.model=student",
              f"stages.capture_fast.teacher={tmp_path}/hf", f"run_dir={tmp_path}/second"]  # fmt: skip
    assert "sft_fast (sft): starts" in call(*second).stdout
    assert "sft_fast (sft): finished before, skipped" in call(*second).stdout
    manifest = files.read_json(tmp_path / "second/stages/02_capture_fast/store/manifest.json")
    assert weights.identity(weights.open_hf(tmp_path / "hf")) in json.dumps(manifest)
    call("tools/convert_weights.py", "export", f"{tmp_path}/second/stages/01_sft_fast", f"{tmp_path}/trained")
    before = dict(weights.iter_tensors(weights.open_hf(tmp_path / "hf")))
    after = dict(weights.iter_tensors(weights.open_hf(tmp_path / "trained")))
    moved = {name: float(np.abs(after[name] - before[name]).max()) for name in before}
    assert 0 < moved["model.layers.0.self_attn.o_proj.bias"] < 0.1


def call(*arguments):
    result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result
