"""GGUF files (llama.cpp) as a WeightSource and a tokenizer.json: the Llama architecture alone, dequantised to float32.

The package `gguf` reads and dequantises. llama.cpp stores q and k rows in the order of interleaved rotary pairs; here
they are put back to that of rotate-half. Legend: H heads, C head dimension, I input features.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mindspore_impl.errors import UserError
from mindspore_impl.model import hf_config
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.weights import HEAD, WeightSource, fit

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SIZES = {
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "max_position_embeddings": "llama.context_length",
}
_READ = {*_SIZES.values(), "llama.attention.head_count_kv", "llama.attention.key_length", "llama.rope.freq_base",
         "llama.attention.layer_norm_rms_epsilon"}  # fmt: skip
# Only longer contexts by YaRN, which is refused, read the first; nothing reads the second.
_HARMLESS = {"llama.rope.scaling.original_context_length", "llama.rope.scaling.finetuned"}
# Values with which the network is the plain one; llama.cpp reads a factor of 0 as 1, and one without a type as linear.
_ONLY = {
    "llama.rope.scaling.type": ("linear", "none"),
    "llama.rope.scaling.factor": (0.0, 1.0),
    "llama.rope.scale_linear": (0.0, 1.0),
    "llama.rope.scaling.attn_factor": (1.0,),
    "llama.rope.scaling.yarn_attn_factor": (1.0,),
    "llama.logit_scale": (0.0, 1.0),
    "llama.residual_scale": (0.0, 1.0),
    "llama.embedding_scale": (0.0, 1.0),
    "llama.attention.causal": (True,),
    "llama.tensor_data_layout": ("Meta AI original pth",),
    "split.count": (0, 1),
}
# Splitting before byte-level BPE, by llama.cpp's name; smollm: every digit alone, then as GPT-2.
_DIGITS = {"type": "Digits", "individual_digits": True}
_PRE_TOKENIZERS = {"gpt-2": [], "smollm": [_DIGITS]}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens that are matched whole


def is_gguf(path: str | Path) -> bool:
    """Whether a file is called like a GGUF file."""
    return Path(path).suffix == ".gguf"


def open_gguf(path: str | Path) -> WeightSource:
    """The weights of a GGUF file under their published names.

    Raises UserError: the package is not installed, the file is absent, damaged or of another architecture, a tensor is
    missing, extra or of a type that cannot be dequantised.
    """
    from mindspore_impl.model.pangu import parameter_shapes

    path = Path(path)
    reader = _open(path)
    metadata = _Metadata(path, reader)
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UserError(f"{path}: general.architecture is {architecture!r}; only 'llama' is read")
    tensors = {_published_name(tensor.name): tensor for tensor in reader.tensors}
    options = _options(metadata, tensors)
    shapes = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()}

    def read(name: str) -> np.ndarray:
        array = _dequantised(path, name, tensors[name]).reshape(shapes[name])
        for kind, heads in (("q_proj", options.num_attention_heads), ("k_proj", options.num_key_value_heads)):
            if f".{kind}." in name:
                # A rotary pair is two neighbouring rows in llama.cpp, and C/2 apart here.
                pairs = array.reshape(heads, len(array) // heads // 2, 2, *array.shape[1:])
                array = pairs.swapaxes(1, 2).reshape(array.shape)
        return np.ascontiguousarray(array)

    expected = parameter_shapes(options)
    for name, tensor in tensors.items():
        if name not in expected and name != HEAD:
            fault = f"the tensor {tensor.name!r} has no place in the plain Llama that the metadata describes"
            raise UserError(f"{path}: {fault}, and changes its results; use weights of a supported model")
    source = WeightSource(path, (path,), shapes, read, options, hf_config.config_of(options, "llama", _ids(metadata)))
    if "tokenizer.ggml.tokens" in metadata.fields:
        source = dataclasses.replace(source, pieces=lambda: metadata.get("tokenizer.ggml.tokens"))
    return fit(source, options, "the file does not hold the Llama that its metadata describes; download it again")


def tokenizer_json(path: str | Path) -> dict:
    """The tokenizer in a GGUF file's metadata, as the content of a tokenizer.json of the `tokenizers` library.

    Raises UserError when it is not a byte-level BPE, or splits words in a way that is not known here.
    """
    path = Path(path)
    metadata = _Metadata(path, _open(path))
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        fault = f"its tokenizer is {kind!r} with pre-tokenizer {pre!r}, not 'gpt2' with {', '.join(_PRE_TOKENIZERS)}"
        raise UserError(f"{path}: {fault}; use the model's own tokenizer.json or tokenizer.model instead")
    tokens = metadata.required("tokenizer.ggml.tokens")
    kinds = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    added = [
        {"id": token_id, "content": token, "special": kinds[token_id] == _CONTROL}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token_id, token in enumerate(tokens)
        if kinds[token_id] in (_CONTROL, _USER_DEFINED)
    ]
    model = {
        "type": "BPE",
        "vocab": {token: token_id for token_id, token in enumerate(tokens)},
        "merges": [merge.split(" ") for merge in metadata.required("tokenizer.ggml.merges")],
    }
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*_PRE_TOKENIZERS[pre], _BYTE_LEVEL]},
        "decoder": _BYTE_LEVEL,
        "model": model,
    }


class _Metadata:
    """Values of a GGUF file by key."""

    def __init__(self, path: Path, reader):
        self.path, self.fields = path, reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        field = self.fields.get(key)
        return default if field is None else field.contents()

    def required(self, key: str) -> Any:
        if key not in self.fields:
            raise UserError(f"{self.path}: the metadata has no {key}; the file is incomplete, download it again")
        return self.get(key)

    def size(self, key: str) -> int:
        """A required whole number; a list must hold the same one for every layer."""
        value = self.required(key)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if type(value) is not int:
            raise UserError(f"{self.path}: {key}: {value!r} is not supported; this model has one number for all layers")
        return value


def _open(path: Path):
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(f"{path}: needs the package gguf; pip install 'openpangu-posttrain[gguf]'") from error
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError, OverflowError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a GGUF file, or damaged ({error}); download it again") from error


def _options(metadata: _Metadata, tensors: dict) -> ModelOptions:
    """The model that the metadata describes. Raises UserError for what this network does not compute."""
    from mindspore_impl.model.pangu import check_options, head_dim

    layer, required = "model.layers.0.self_attn.", metadata.required
    sizes = {option: metadata.size(key) for option, key in _SIZES.items()}
    kv_heads = "llama.attention.head_count_kv"
    options = ModelOptions(
        **sizes,
        vocab_size=int(tensors["model.embed_tokens.weight"].shape[-1]) if "model.embed_tokens.weight" in tensors else 0,
        num_key_value_heads=metadata.size(kv_heads if kv_heads in metadata.fields else _SIZES["num_attention_heads"]),
        head_dim=metadata.get("llama.attention.key_length"),
        rope_theta=float(metadata.get("llama.rope.freq_base", 10000.0)),
        # Stored as float32: the decimal number that was meant is the shortest that rounds to it.
        rms_norm_eps=float(str(np.float32(required("llama.attention.layer_norm_rms_epsilon")))),
        qkv_bias=layer + "q_proj.bias" in tensors,
        o_bias=layer + "o_proj.bias" in tensors,
        tie_word_embeddings=HEAD not in tensors,
    )
    check_options(options, str(metadata.path))
    said = {key: metadata.get(key) for key in metadata.fields if key.startswith(("llama.", "split.count"))}
    per_head, window, scale = head_dim(options), "llama.attention.sliding_window", "llama.attention.scale"
    only = _ONLY | {
        "llama.vocab_size": (options.vocab_size,),
        "llama.rope.dimension_count": (per_head,),
        "llama.attention.value_length": (per_head,),
        scale: (0.0, per_head**-0.5),
        window: (0,),
    }
    if type(said.get(window)) is int and said[window] >= options.max_position_embeddings:
        del said[window]  # of the whole context: none
    if type(said.get(scale)) is float and abs(said[scale] * per_head**0.5 - 1) < 1e-6:
        del said[scale]  # stored as float32
    hf_config.check_known(said, _READ | _HARMLESS, only, str(metadata.path))
    return options


def _published_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; an unknown name stays, and is refused by `fit`."""
    parts = name.split(".")
    layer = f"model.layers.{parts[1]}." if parts[0] == "blk" and len(parts) == 4 else ""
    return f"{layer}{_NAMES[parts[-2]]}.{parts[-1]}" if len(parts) > 1 and parts[-2] in _NAMES else name


def _dequantised(path: Path, name: str, tensor) -> np.ndarray:
    from gguf.quants import dequantize

    try:
        array = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        kind = getattr(tensor.tensor_type, "name", tensor.tensor_type)
        raise UserError(f"{path}: {name!r} has the type {kind}, which gguf cannot dequantise") from error
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{path}: {name!r} holds NaN or infinity; choose intact weights")
    return array


def _ids(metadata: _Metadata) -> dict[str, int]:
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {theirs: metadata.get(f"tokenizer.ggml.{ours}_token_id") for theirs, ours in keys.items()}
    return {key: value for key, value in found.items() if value is not None}
