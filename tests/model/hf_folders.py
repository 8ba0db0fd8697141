"""Hugging Face folders written by hand, so that what reads them is not tested against what writes them."""

import json

import numpy as np

from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import parameter_shapes

OPTIONS = ModelOptions(
    vocab_size=37, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)  # fmt: skip
CONFIG = {
    "architectures": ["PanguEmbeddedForCausalLM"], "model_type": "PanguEmbedded", "vocab_size": 37, "hidden_size": 24,
    "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "hidden_act": "silu", "rope_theta": 10000.0, "rms_norm_eps": 1e-05, "bias": True,
    "tie_word_embeddings": True, "initializer_range": 0.02, "torch_dtype": "bfloat16", "bos_token_id": 1,
}  # fmt: skip


def values(shape, seed):
    """float32 values that bfloat16 and float16 both hold exactly."""
    return np.asarray(np.random.default_rng(seed).integers(-120, 121, shape), np.float32) / np.float32(64)


def raw(array, dtype):
    """The bytes of float32 values in a stored dtype; bfloat16 by dropping the lower half, which is exact here."""
    if dtype == "BF16":
        return (array.view(np.uint32) >> 16).astype("<u2").tobytes()
    return array.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def tensors_of(options=OPTIONS):
    """Name to float32 array for every parameter of a model."""
    return {name: values(shape, i) for i, (name, shape) in enumerate(parameter_shapes(options).items())}


def write_safetensors(path, tensors, dtype="BF16", header_of=lambda header: header):
    """A safetensors file; `header_of` may spoil its header (a dict, or bytes)."""
    header, data = {}, b""
    for name, array in tensors.items():
        part = raw(array, dtype)
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    header = header_of(header)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_folder(folder, tensors=None, dtype="BF16", shards=1, **changes):
    """A Hugging Face folder; -> its tensors. `changes` go into config.json; a value of ... removes the key."""
    folder.mkdir(exist_ok=True)
    tensors = tensors_of() if tensors is None else tensors
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return tensors
    names = sorted(tensors)
    places = {name: f"model-{1 + i % shards:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(places.values())):
        write_safetensors(folder / shard, {n: tensors[n] for n in names if places[n] == shard}, dtype)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def read_raw(folder):
    """name -> (dtype, shape, bytes) of every tensor in the safetensors files of a folder, with a plain parser."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = (entry["dtype"], tuple(entry["shape"]), content[start + begin : start + end])
    return found
