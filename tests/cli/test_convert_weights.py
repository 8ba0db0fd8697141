"""Weights in and out: byte for byte, whole or not at all."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindspore_impl import checkpoint, config, files
from mindspore_impl.cli import convert_weights
from mindspore_impl.cli.convert_weights import FolderFormat, describe, export_weights, import_weights, random_weights
from mindspore_impl.curriculum import configuration
from mindspore_impl.errors import UserError
from mindspore_impl.model import hf_config, tensor_file, weights
from mindspore_impl.model.pangu import parameter_shapes
from mindspore_impl.text.tokenizer import train_tokenizer
from tests.cli.test_verify_store import write_config
from tests.curriculum.conftest import compose_quickly
from tests.model.hf_folders import CONFIG, OPTIONS, read_raw, tensors_of, write_folder, write_safetensors

ROOT = Path(__file__).resolve().parents[2]
CONFIG_DTYPE = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def any_bits(dtype):
    """Tensors of a model with any finite bit pattern of `dtype`, the smallest and largest numbers included."""
    draw, tensors = np.random.default_rng(4), {}
    for name, shape in parameter_shapes(OPTIONS).items():
        stored = np.frombuffer(draw.bytes(int(np.prod(shape)) * tensor_file.STORED[dtype].itemsize), "u1").copy()
        stored = stored.view(tensor_file.STORED[dtype])
        wide = tensor_file.from_bfloat16(stored) if dtype == "BF16" else stored.astype(np.float32)
        tensors[name] = np.where(np.isfinite(wide), wide, 1.0).astype(np.float32).reshape(shape)
    return tensors


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_round_trip_is_byte_exact(tmp_path, dtype, shards):
    """In and out again in the dtype that config.json names: the same tensors to the last byte, the same config.json."""
    write_folder(tmp_path / "hf", any_bits(dtype), dtype, shards, torch_dtype=CONFIG_DTYPE[dtype], auto_map={"a": "b"})
    import_weights(tmp_path / "hf", tmp_path / "checkpoint")
    line = export_weights(tmp_path / "checkpoint", tmp_path / "again", FolderFormat())
    assert read_raw(tmp_path / "again") == read_raw(tmp_path / "hf")
    assert files.read_json(tmp_path / "again/config.json") == files.read_json(tmp_path / "hf/config.json")
    assert {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}[dtype] in line


def test_what_is_imported_is_a_checkpoint(tmp_path):
    tensors = write_folder(tmp_path / "hf")
    import_weights(tmp_path / "hf", tmp_path / "checkpoint")
    found = checkpoint.latest(tmp_path / "checkpoint")
    assert found.step == 0 and found.position == {"step": 0, "source": "hf"}
    read = checkpoint.read_weights(found.path)
    assert set(read) == set(tensors)
    for name, array in read.items():
        np.testing.assert_array_equal(array, tensors[name])
    for path in (tmp_path / "checkpoint", found.path, found.weights_path):
        source = checkpoint.open_weights(path)
        assert source.options == OPTIONS
        assert weights.identity(source) == found.weights_sha256


def test_a_damaged_import_is_noticed(tmp_path):
    write_folder(tmp_path / "hf")
    import_weights(tmp_path / "hf", tmp_path / "checkpoint")
    path = checkpoint.latest(tmp_path / "checkpoint").weights_path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        checkpoint.open_weights(tmp_path / "checkpoint")


@pytest.mark.parametrize("size", ["2KB", "9KB", "1GB"])
def test_shards_stay_below_their_size(tmp_path, size):
    tensors = write_folder(tmp_path / "hf")
    export_weights(tmp_path / "hf", tmp_path / "out", FolderFormat("fp32", size))
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    if size == "1GB":
        assert [path.name for path in shards] == ["model.safetensors"]
        assert not (tmp_path / "out/model.safetensors.index.json").exists()
    else:
        assert [path.name for path in shards] == [
            f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
        ]
        index = files.read_json(tmp_path / "out/model.safetensors.index.json")
        assert set(index["weight_map"]) == set(tensors) and set(index["weight_map"].values()) == {
            p.name for p in shards
        }
        assert index["metadata"]["total_size"] == 4 * sum(array.size for array in tensors.values())
        for path in shards:
            header = tensor_file.read_header(path)
            held = sum(tensor_file.data_bytes(info.shape, "F32") for info in header.values())
            assert held <= {"2KB": 2000, "9KB": 9000}[size] or len(header) == 1
    for name, array in weights.iter_tensors(weights.open_hf(tmp_path / "out")):
        np.testing.assert_array_equal(array, tensors[name])


def test_narrowing_rounds_to_the_nearest(tmp_path):
    tensors = {
        name: np.full(shape, 1 + 2**-9 + 2**-20, np.float32) for name, shape in parameter_shapes(OPTIONS).items()
    }
    write_folder(tmp_path / "hf", tensors, "F32")
    export_weights(tmp_path / "hf", tmp_path / "out", FolderFormat("bf16"))
    assert {array.max() for _, array in weights.iter_tensors(weights.open_hf(tmp_path / "out"))} == {1.0}
    tensors["model.norm.weight"][3] = 7e4
    write_folder(tmp_path / "hf", tensors, "F32")
    with pytest.raises(UserError, match="'model.norm.weight' .*70000.*F16"):
        export_weights(tmp_path / "hf", tmp_path / "half", FolderFormat("fp16"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    write_folder(tmp_path / "hf")
    read = tensor_file.read_tensor

    def stop(name, info):
        if name == "model.norm.weight":
            raise KeyboardInterrupt
        return read(name, info)

    monkeypatch.setattr(tensor_file, "read_tensor", stop)
    with pytest.raises(KeyboardInterrupt):
        export_weights(tmp_path / "hf", tmp_path / "out", FolderFormat())
    with pytest.raises(KeyboardInterrupt):
        import_weights(tmp_path / "hf", tmp_path / "checkpoint")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "hf"]
    assert list((tmp_path / "checkpoint").iterdir()) == []
    monkeypatch.setattr(tensor_file, "read_tensor", read)
    import_weights(tmp_path / "hf", tmp_path / "checkpoint")


def test_an_imported_tokenizer_goes_along(tmp_path):
    write_folder(tmp_path / "hf")
    (tmp_path / "hf/tokenizer.model").write_bytes(b"pieces")
    import_weights(tmp_path / "hf", tmp_path / "checkpoint")
    export_weights(tmp_path / "checkpoint", tmp_path / "again", FolderFormat(model_type="llama"))
    assert (tmp_path / "again/tokenizer.model").read_bytes() == b"pieces"
    written = files.read_json(tmp_path / "again/config.json")
    assert (written["model_type"], written["attention_bias"], written["bos_token_id"]) == ("llama", True, 1)
    assert weights.open_hf(tmp_path / "again").options == dataclasses.replace(OPTIONS, head_dim=6)


@pytest.fixture
def run(tmp_path):
    """A run directory with one trained stage, whose best checkpoint is not its last."""
    folder = tmp_path / "run"
    texts = [f"sort {letter} then reverse" for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = train_tokenizer(texts, folder / "tokenizer" / "tokenizer.model", 80, 1.0)
    write_config(folder, "stages.sft_fast.train.select=best", "stages.sft_fast.data.validation=[validation_fast]")
    options = dataclasses.replace(compose_quickly().models["student"], vocab_size=tokenizer.vocab_size)
    stage = folder / "stages" / "03_sft_fast"
    source = dict(weights.iter_tensors(weights.random_source(options, 1)))
    files.write_json(
        stage / "stage.json", {"kind": "sft", "model": "student", "options": {"train": {"select": "best"}}}
    )
    for step, scale in ((10, 1), (20, 2)):
        arrays = {name: array * np.float32(scale) for name, array in source.items()}
        checkpoint.save(stage / "checkpoints", step, arrays, {}, {"step": step}, 5, metric=float(step))
    return folder, stage, options, tokenizer, source


def test_a_run_is_exported_with_its_tokenizer(run, tmp_path):
    folder, stage, options, tokenizer, source = run
    export_weights(stage, tmp_path / "best", FolderFormat("fp32"))
    export_weights(stage / "checkpoints" / "step_00000020", tmp_path / "last", FolderFormat("fp32"))
    for name, scale in (("best", 1), ("last", 2)):
        found = weights.open_hf(tmp_path / name)
        assert dataclasses.replace(found.options, head_dim=None) == options
        for key, array in weights.iter_tensors(found):
            np.testing.assert_array_equal(array, source[key] * np.float32(scale), err_msg=f"{name} {key}")
        assert files.sha256_file(tmp_path / name / "tokenizer.model") == tokenizer.sha256
        written = files.read_json(tmp_path / name / "config.json")
        assert (written["bos_token_id"], written["eos_token_id"]) == (tokenizer.bos_id, tokenizer.eos_id)
        assert written["pad_token_id"] == 0 and written["model_type"] == "PanguEmbedded"


def test_a_random_model_is_what_a_new_model_starts_from(ms_runtime, tmp_path):
    from mindspore_impl.model.pangu import PanguForCausalLM

    random_weights("tiny_student", tmp_path / "hf", 3, 50, FolderFormat("fp32"))
    found = weights.open_hf(tmp_path / "hf")
    model = PanguForCausalLM(found.options, seed=3)
    for name, array in weights.iter_tensors(found):
        np.testing.assert_array_equal(array, model.parameters_dict()[name].asnumpy(), err_msg=name)


def test_the_description_is_a_file_of_conf(tmp_path, monkeypatch):
    """What `describe` prints, put into conf/model/, gives exactly the model of the weights."""
    write_folder(tmp_path / "hf", rms_norm_eps=1e-05, rope_theta=1.6e7, head_dim=6)
    text = describe(tmp_path / "hf")
    conf = tmp_path / "conf"
    subprocess.run(["cp", "-r", str(config.conf_folder()), str(conf)], check=True)
    (conf / "model" / "mine.yaml").write_text(text)
    monkeypatch.setattr(config, "conf_folder", lambda: conf)
    found = configuration.compose(["model@models.student=mine"]).models["student"]
    assert found == dataclasses.replace(OPTIONS, rope_theta=1.6e7, head_dim=6)
    assert text.startswith("# ") and "python tools/train.py model@models.student=NAME" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "{hf}", "{full}"], "not an empty folder"),
        (["export", "{hf}", "{full}"], "not an empty folder"),
        (["import", "{missing}", "{out}"], "missing: no such file or folder"),
        (["export", "{missing}", "{out}"], "missing: no such file or folder"),
        (["import", "{bare}", "{out}"], "bare.safetensors: no config.json says what model this is"),
        (["export", "{bare}", "{out}"], "give one with --config FILE"),
        (["export", "{hf}", "{out}", "--shard-size", "2XB"], "--shard-size: '2XB'"),
        (["export", "{hf}", "{out}", "--shard-size", "0GB"], "--shard-size: '0GB'"),
        (["random", "tiny_student", "{out}"], "leaves vocab_size to the tokenizer; give --vocab-size"),
        (["random", "tiny_studen", "{out}"], "tiny_student"),
        (["export", "{full}", "{out}"], "full: holds no checkpoint"),
        (["describe", "{bare}"], "no config.json says what model this is"),
    ],
)
def test_faults_are_one_message(tmp_path, capsys, arguments, message):
    write_folder(tmp_path / "hf")
    write_safetensors(tmp_path / "bare.safetensors", tensors_of())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    names = {"hf": "hf", "full": "full", "missing": "missing", "out": "out", "bare": "bare.safetensors"}
    paths = {key: str(tmp_path / name) for key, name in names.items()}
    assert convert_weights.main([argument.format(**paths) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[0].startswith("error: ") and message in "\n".join(error)
    assert not (tmp_path / "out").exists() and (tmp_path / "full" / "thesis.tex").read_text() == "precious"


def test_a_bare_file_is_exported_with_a_config(tmp_path):
    write_safetensors(tmp_path / "bare.safetensors", tensors_of())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    arguments = ["export", str(tmp_path / "bare.safetensors"), str(tmp_path / "out"), "--config"]
    assert convert_weights.main([*arguments, str(tmp_path / "config.json")]) == 0
    assert set(read_raw(tmp_path / "out")) == set(tensors_of())


# Not getrusage: a child inherits the peak of the process that forked it.
_MEASURE = """
import sys
from pathlib import Path
from mindspore_impl import runtime
from mindspore_impl.cli import convert_weights
from mindspore_impl.model import weights
from mindspore_impl.model.pangu import PanguForCausalLM

def kilobytes(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))

verb, *rest = sys.argv[1:]
if verb == "load":
    runtime.setup(runtime.RuntimeOptions(device="CPU"))
    source = weights.open_hf(rest[0])
    model = PanguForCausalLM(source.options, initialise=False)
    before = kilobytes("VmRSS")
    weights.load_into(model, source)
else:
    before = kilobytes("VmRSS")
    assert convert_weights.main([verb, *rest]) == 0
print("grown", (kilobytes("VmHWM") - before) // 1024)
"""


@pytest.mark.slow
def test_memory_follows_the_largest_tensor_not_the_model(tmp_path, monkeypatch):
    """196 MB of float32 weights, whose largest tensor has 8 MB, in four ways: each takes less than 60 MB."""
    options = dataclasses.replace(
        compose_quickly().models["student"],
        vocab_size=4000,
        hidden_size=512,
        intermediate_size=1400,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    assert 4 * sum(np.prod(shape) for shape in parameter_shapes(options).values()) > 190e6
    monkeypatch.chdir(tmp_path)
    Path("hf").mkdir()
    weights.write_hf(
        Path("hf"), weights.random_source(options, 1), hf_config.config_of(options, "llama", {}), "bf16", 10**12
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for arguments in ("import hf checkpoint", "export checkpoint out", "export hf s --shard-size=40MB", "load hf"):
        command = [sys.executable, "-c", _MEASURE, *arguments.split()]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert int(result.stdout.split("grown ")[1]) < 60, f"{arguments}: {result.stdout}"
    assert read_raw(Path("out")) == read_raw(Path("hf"))
