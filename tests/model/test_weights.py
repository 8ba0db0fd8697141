"""Hugging Face folders: what is read is what is there, what does not fit is refused by name."""

import dataclasses
import json

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.model import hf_config, weights
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import parameter_shapes
from tests.model.hf_folders import CONFIG, OPTIONS, tensors_of, values, write_folder, write_safetensors

INDEX = "model.safetensors.index.json"
HEAD, EMBEDDING = weights.HEAD, weights.EMBEDDING
UNTIED = dataclasses.replace(OPTIONS, tie_word_embeddings=False)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_tensor_is_read(tmp_path, dtype, shards):
    tensors = write_folder(tmp_path, dtype=dtype, shards=shards)
    source = weights.open_hf(tmp_path)
    assert source.options == dataclasses.replace(OPTIONS, head_dim=None)
    found = dict(weights.iter_tensors(source))
    assert list(found) == list(parameter_shapes(OPTIONS))
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)


def test_every_parameter_of_the_model_is_set(ms_runtime, tmp_path):
    from mindspore_impl.model.pangu import PanguForCausalLM

    tensors = write_folder(tmp_path, tensors_of(UNTIED), shards=2, tie_word_embeddings=False)
    model = PanguForCausalLM(UNTIED, seed=0)
    weights.load_into(model, weights.open_hf(tmp_path))
    assert {parameter.name for parameter in model.get_parameters()} == set(tensors)
    for parameter in model.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), tensors[parameter.name], err_msg=parameter.name)


@pytest.mark.parametrize("name", parameter_shapes(UNTIED))
def test_any_dropped_tensor_is_missed(tmp_path, name):
    tensors = tensors_of(UNTIED)
    del tensors[name]
    write_folder(tmp_path, tensors, tie_word_embeddings=False)
    with pytest.raises(UserError, match=f"{name}' .*(is not in it|is missing)"):
        weights.open_hf(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
def test_an_extra_tensor_is_refused(tmp_path, shards):
    tensors = {**tensors_of(), "model.layers.2.mlp.up_proj.weight": values((40, 24), 0)}
    write_folder(tmp_path, tensors, shards=shards)
    with pytest.raises(UserError, match=r"'model.layers.2.mlp.up_proj.weight' \[40, 24\].*config.json"):
        weights.open_hf(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
def test_inv_freq_alone_is_ignored(tmp_path, shards):
    tensors = tensors_of()
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": values((3,), i) for i in range(2)}
    write_folder(tmp_path, {**tensors, **buffers}, shards=shards)
    assert list(weights.open_hf(tmp_path).shapes) == list(parameter_shapes(OPTIONS))
    write_folder(tmp_path, {**tensors, "model.layers.0.self_attn.inv_freq": values((3,), 0)}, shards=shards)
    with pytest.raises(UserError, match="inv_freq"):
        weights.open_hf(tmp_path)


def test_a_wrong_shape_and_biases_that_config_json_denies_are_refused(tmp_path):
    write_folder(tmp_path, bias=False)
    with pytest.raises(UserError, match="k_proj.bias"):
        weights.open_hf(tmp_path)
    tensors = tensors_of()
    tensors["model.layers.1.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"].T.copy()
    write_folder(tmp_path, tensors)
    with pytest.raises(UserError, match=r"layers.1.mlp.down_proj.weight' has shape \[40, 24\].*\[24, 40\]"):
        weights.open_hf(tmp_path)


def test_tied_head(tmp_path):
    """A tied model may carry its head, if it is the embedding to the last bit; an untied one must."""
    tensors = tensors_of()
    write_folder(tmp_path, {**tensors, HEAD: tensors[EMBEDDING].copy()}, shards=2)
    assert HEAD not in weights.open_hf(tmp_path).shapes
    other = tensors[EMBEDDING].copy()
    tensors[EMBEDDING][-1, -1], other[-1, -1] = 0.0, -0.0
    for head in (other, other[:-1]):
        write_folder(tmp_path, {**tensors, HEAD: head}, shards=2)
        with pytest.raises(UserError, match="'lm_head.weight'.*tie_word_embeddings"):
            weights.open_hf(tmp_path)
    write_folder(tmp_path, tensors, shards=2, tie_word_embeddings=False)
    with pytest.raises(UserError, match="'lm_head.weight' is missing.*tie_word_embeddings"):
        weights.open_hf(tmp_path)


def _edit(folder, change):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_a_missing_shard_is_named(tmp_path):
    write_folder(tmp_path, shards=3)
    path = tmp_path / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="model-00002-of-00003.safetensors: cut off"):
        weights.open_hf(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"missing shard model-00002-of-00003.safetensors \(1 of 3\)"):
        weights.open_hf(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..", "", "a\\b.safetensors", "model.bin"]
)
def test_a_shard_outside_the_folder_is_refused(tmp_path, shard):
    folder = tmp_path / "hf"
    tensors = write_folder(folder, shards=2)
    write_safetensors(tmp_path / "x.safetensors", tensors)
    _edit(folder, lambda places: {name: shard for name in places})
    with pytest.raises(UserError, match="not to a .safetensors file of this folder"):
        weights.open_hf(folder)


def test_links_of_the_hub_cache_are_followed(tmp_path):
    """The hub's cache is a folder of links to content-addressed files elsewhere."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    write_folder(blobs, shards=2)
    folder.mkdir()
    for path in blobs.iterdir():
        (folder / path.name).symlink_to(path)
    assert len(weights.open_hf(folder).shapes) == len(parameter_shapes(OPTIONS))


def test_index_and_shards_must_agree(tmp_path):
    write_folder(tmp_path, shards=2)
    name = "model.norm.weight"
    _edit(tmp_path, lambda places: {key: value for key, value in places.items() if key != name})
    with pytest.raises(UserError, match=f"'{name}' is in it, against {INDEX}"):
        weights.open_hf(tmp_path)
    write_folder(tmp_path, shards=2)
    _edit(tmp_path, lambda places: {**places, "ghost": places[name]})
    with pytest.raises(UserError, match=f"'ghost' is not in it, against {INDEX}"):
        weights.open_hf(tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": []}']
)
def test_a_damaged_index_is_refused(tmp_path, content):
    write_folder(tmp_path, shards=2)
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match="weight_map is missing"):
        weights.open_hf(tmp_path)


def test_which_file_holds_the_weights_must_be_clear(tmp_path):
    write_folder(tmp_path, shards=2)
    write_safetensors(tmp_path / "model.safetensors", tensors_of())
    with pytest.raises(UserError, match="holds both model.safetensors and model.safetensors.index.json"):
        weights.open_hf(tmp_path)
    for path in (*tmp_path.glob("*.safetensors"), tmp_path / INDEX):
        path.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert weights.is_hf_folder(tmp_path)
    with pytest.raises(UserError, match="only safetensors weights are read"):
        weights.open_hf(tmp_path)


def test_identity_follows_every_shard_and_the_index(tmp_path):
    write_folder(tmp_path, shards=2)
    seen = {weights.identity(weights.open_hf(tmp_path))}
    assert seen == {weights.identity(weights.open_hf(tmp_path))}
    for shard in range(2):
        tensors = tensors_of()
        name = sorted(tensors)[shard]
        tensors[name][...] += 1
        write_folder(tmp_path, tensors, shards=2)
        seen.add(weights.identity(weights.open_hf(tmp_path)))
    assert len(seen) == 3


# config.json


def _options(**changes):
    return hf_config.options_of({k: v for k, v in {**CONFIG, **changes}.items() if v is not ...}, "config.json")


def test_config_json_field_by_field():
    assert _options() == OPTIONS
    read = _options(
        vocab_size=50, hidden_size=36, intermediate_size=44, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=3, head_dim=8, max_position_embeddings=99, rope_theta=4e6, rms_norm_eps=1e-6, bias=False,
        tie_word_embeddings=False, initializer_range=0.5,
    )  # fmt: skip
    assert read == ModelOptions(
        vocab_size=50, hidden_size=36, intermediate_size=44, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=3, head_dim=8,
        max_position_embeddings=99, rope_theta=4e6, rms_norm_eps=1e-6, qkv_bias=False, o_bias=False,
        tie_word_embeddings=False, initializer_range=0.5,
    )  # fmt: skip


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "bias": ...}


def test_what_config_json_leaves_out_has_the_meaning_of_its_type():
    pangu = _options(bias=..., rope_theta=..., rms_norm_eps=..., tie_word_embeddings=..., num_key_value_heads=...)
    assert (pangu.qkv_bias, pangu.o_bias, pangu.rope_theta, pangu.rms_norm_eps) == (True, True, 1.6e7, 1e-5)
    assert (pangu.tie_word_embeddings, pangu.num_key_value_heads) == (False, 4)
    llama = _options(**LLAMA, rope_theta=..., rms_norm_eps=..., tie_word_embeddings=...)
    assert (llama.qkv_bias, llama.o_bias, llama.rope_theta, llama.rms_norm_eps) == (False, False, 1e4, 1e-6)
    assert not llama.tie_word_embeddings
    assert _options(**LLAMA, attention_bias=True).o_bias


@pytest.mark.parametrize(
    "harmless",
    [{"use_cache": False}, {"auto_map": {"AutoConfig": "x.y"}}, {"attention_dropout": 0.0}, {"sliding_window": None},
     {"mlp_bias": False}, {"rope_scaling": {"rope_type": "default"}},
     {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
     {"transformers_version": "4.57.1"}, {"partial_rotary_factor": 1.0}, {"pretraining_tp": 2}],
    ids=str,
)  # fmt: skip
def test_harmless_keys_pass(harmless):
    assert _options(**harmless) == OPTIONS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling: .* is not supported"),
        ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, "rope_scaling: "),
        ({"rope_scaling": "linear"}, "rope_scaling: "),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, "rope_theta: 10000.0 differs from rope_par"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rope_parameters: "),
        ({"mlp_bias": True}, "mlp_bias: True"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported; this model has 'silu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ({"attention_dropout": 0.1}, "attention_dropout: 0.1"),
        ({"sliding_window": 4096}, "sliding_window: 4096"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: "),
        ({"num_local_experts": 8}, "num_local_experts: 8"),
        ({"attention_bias": True}, "attention_bias: True"),
        ({"model_type": "qwen2"}, "model_type: 'qwen2' is not supported; supported are PanguEmbedded, llama"),
        ({"model_type": ...}, "model_type: None"),
        ({"model_type": ["llama"]}, "model_type: "),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures: "),
        ({"architectures": "LlamaForCausalLM"}, "architectures: "),
        ({"hidden_size": ...}, "hidden_size: no value given"),
        ({"hidden_size": "24"}, "hidden_size: expected a whole number, found '24'"),
        ({"hidden_size": 24.0}, "hidden_size: expected a whole number, found 24.0"),
        ({"num_hidden_layers": True}, "num_hidden_layers: expected a whole number, found True"),
        ({"rope_theta": "1e4"}, "rope_theta: expected a number"),
        ({"bias": "true"}, "bias: expected true or false, found 'true'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide 4"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0 is below 1"),
    ],
    ids=str,
)
def test_an_unsupported_feature_is_refused_by_its_key(changes, message):
    with pytest.raises(UserError, match=f"config.json.{{1,2}}{message}"):
        _options(**changes)


@pytest.mark.parametrize("model_type", ["PanguEmbedded", "llama"])
@pytest.mark.parametrize("options", [OPTIONS, dataclasses.replace(UNTIED, qkv_bias=False, o_bias=False, head_dim=10)])
def test_a_config_that_is_written_reads_the_same(model_type, options):
    content = hf_config.config_of(options, model_type, {"bos_token_id": 1})
    read = hf_config.options_of(json.loads(json.dumps(content)), "config.json")
    assert dataclasses.replace(read, head_dim=options.head_dim) == options
    assert content["head_dim"] == (options.head_dim or 6) and content["bos_token_id"] == 1
    with pytest.raises(UserError, match="qkv_bias .* o_bias"):
        hf_config.config_of(dataclasses.replace(options, o_bias=not options.o_bias), model_type, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 4e6}, "models.student.rope_theta is 4000000.0, rope_theta of the weights 10000.0"),
        ({"num_hidden_layers": 3}, "models.student.num_hidden_layers is 3, num_hidden_layers of the weights 2"),
        ({"vocab_size": 160}, "models.student.vocab_size is 160, vocab_size of the weights 37"),
        ({"o_bias": False}, "models.student.o_bias is False, o_bias of the weights True"),
        ({"head_dim": 8}, "models.student.head_dim is 8, head_dim of the weights 6"),
        ({"rms_norm_eps": 1e-6}, "models.student.rms_norm_eps is 1e-06"),
        (
            {"tie_word_embeddings": False},
            "models.student.tie_word_embeddings is False, tie_word_embeddings of the weights True",
        ),
        ({"max_position_embeddings": 65}, "models.student.max_position_embeddings is 65"),
    ],
    ids=str,
)
def test_a_stage_of_another_model_is_refused_by_its_key(changes, message):
    with pytest.raises(UserError, match=f"HF: these weights are of another model: {message}"):
        hf_config.check_same(OPTIONS, dataclasses.replace(OPTIONS, **changes), "HF", "models.student")


@pytest.mark.parametrize(
    "changes",
    [{}, {"recompute": True}, {"initializer_range": 1.0}, {"max_position_embeddings": 32}, {"head_dim": 6},
     {"vocab_size": 0}],
    ids=str,
)  # fmt: skip
def test_what_does_not_concern_the_weights_may_differ(changes):
    hf_config.check_same(OPTIONS, dataclasses.replace(OPTIONS, **changes), "HF", "models.student")
