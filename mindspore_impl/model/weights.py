"""Stream model weights: open a source, check that it fits a model, load it, export it.

A WeightSource lists tensors and reads one at a time: a Hugging Face folder (one file, or shards and an index) or a
.safetensors file. To support another format, make a WeightSource with the published names.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mindspore_impl import files, runtime
from mindspore_impl.errors import UserError
from mindspore_impl.model import hf_config, tensor_file
from mindspore_impl.model.options import ModelOptions

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
_TORCH_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_NOT_WEIGHTS = "rotary_emb.inv_freq"  # a buffer that some published files carry; it follows from rope_theta


@dataclass(frozen=True)
class WeightSource:
    """Weights that can be read one tensor at a time, under the published names.

    path: what the user named, for messages; files: whose bytes are the weights (empty: they are computed); shapes: of
    every tensor, in the order in which they are read; read: name -> float32 array; options: the model they belong to,
    None where the files do not say; config: the content of config.json, if there is one; sha256: of the weights where
    it is known already; tokenizer_sha256: of the tokenizer that they were trained with, where the files say;
    pieces: of its vocabulary in order, where they say only that (GGUF).
    """

    path: Path
    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    options: ModelOptions | None = None
    config: dict | None = None
    sha256: str | None = None
    tokenizer_sha256: str | None = None
    pieces: Callable[[], list[str]] | None = None


def iter_tensors(source: WeightSource, title: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, float32 array) for every tensor of `source`, one in memory at a time.

    title: the text of a progress bar on stderr (None: no bar), which counts float32 bytes.
    """
    total = sum(tensor_file.data_bytes(shape, "F32") for shape in source.shapes.values())
    with runtime.progress_bar(total, title or "", "B", shown=title is not None, unit_scale=True) as bar:
        for name, shape in source.shapes.items():
            yield name, source.read(name)
            bar.update(tensor_file.data_bytes(shape, "F32"))


def is_hf_folder(path: str | Path) -> bool:
    """Whether a folder looks like a Hugging Face model (a checkpoint of ours has weights.safetensors)."""
    path = Path(path)
    found = any((path / name).is_file() for name in (hf_config.CONFIG, SINGLE, INDEX))
    return found and not (path / "weights.safetensors").is_file()


def open_hf(folder: str | Path) -> WeightSource:
    """The weights of a Hugging Face folder, names and shapes checked against its config.json.

    Raises UserError for a missing or truncated shard, one outside the folder, an extra or missing tensor, a wrong
    shape, a head that does not fit tie_word_embeddings, or a model that is not supported.
    """
    folder = Path(folder)
    options, config = hf_config.read_config(folder)
    paths = hf_files(folder)
    source = _source_of(folder, _hf_tensors(folder, paths), paths)
    advice = f"{hf_config.CONFIG} does not describe these weights: copy or download the folder again"
    return dataclasses.replace(fit(source, options, advice), options=options, config=config)


def open_file(path: str | Path) -> WeightSource:
    """The weights of one .safetensors file. Raises UserError that names the file when it is damaged or absent."""
    path = Path(path)
    return _source_of(path, _of_model(tensor_file.read_header(path)), [path])


def _source_of(path: Path, tensors: dict[str, tensor_file.TensorInfo], paths: list[Path]) -> WeightSource:
    shapes = {name: info.shape for name, info in tensors.items()}
    return WeightSource(path, tuple(paths), shapes, lambda name: tensor_file.read_tensor(name, tensors[name]))


def _of_model(tensors: dict[str, tensor_file.TensorInfo]) -> dict[str, tensor_file.TensorInfo]:
    return {name: info for name, info in tensors.items() if not name.endswith(_NOT_WEIGHTS)}


def hf_files(folder: str | Path) -> list[Path]:
    """The files that decide a Hugging Face folder's weights: one, or an index and its shards. UserError: damaged."""
    folder = Path(folder)
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise UserError(f"{folder}: holds both {SINGLE} and {INDEX}; remove the one that is out of date")
    if single.is_file():
        return [single]
    if not index.is_file():
        raise UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}; only safetensors weights are read")
    shards = list(_shards(index))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: missing shard {missing[0]} ({len(missing)} of {len(shards)}); download it again")
    return [index, *(folder / name for name in shards)]


def _hf_tensors(folder: Path, paths: list[Path]) -> dict[str, tensor_file.TensorInfo]:
    """Every tensor of the folder's file or shards (`paths`), each where the index says."""
    if len(paths) == 1:
        return _of_model(tensor_file.read_header(paths[0]))
    tensors: dict[str, tensor_file.TensorInfo] = {}
    for name, expected in _shards(paths[0]).items():
        header = tensor_file.read_header(folder / name)
        if differing := sorted(expected ^ set(header)):
            fault = "is not in it" if differing[0] in expected else "is in it"
            raise UserError(f"{folder / name}: {differing[0]!r} {fault}, against {INDEX}; download both again")
        tensors |= _of_model(header)
    return tensors


def _shards(index: Path) -> dict[str, set[str]]:
    """Shard name -> names of its tensors, from the index."""
    content = files.read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(value, str) for value in places.values()):
        raise UserError(f"{index}: weight_map is missing or maps no tensor to a file; download the index again")
    shards: dict[str, set[str]] = {}
    for name, shard in sorted(places.items(), key=lambda item: item[1]):
        # A plain name cannot leave the folder. Links are followed: the hub's own cache consists of them.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise UserError(f"{index}: {name!r} is mapped to {shard!r}, not to a .safetensors file of this folder")
        shards.setdefault(shard, set()).add(name)
    return shards


def fit(source: WeightSource, options: ModelOptions, advice: str | None = None) -> WeightSource:
    """The source reduced to the parameters of a model, in its order; `advice` ends the message of a UserError.

    A tied model takes a head only if it equals the embedding bit for bit.
    """
    from mindspore_impl.model.pangu import parameter_shapes

    shapes, expected = dict(source.shapes), parameter_shapes(options)
    if options.tie_word_embeddings and HEAD in shapes:
        if shapes[HEAD] != shapes.get(EMBEDDING) or _digest(source, HEAD) != _digest(source, EMBEDDING):
            raise UserError(f"{source.path}: {HEAD!r} differs from the embedding, against tie_word_embeddings")
        del shapes[HEAD]
    if not options.tie_word_embeddings and HEAD not in shapes:
        raise UserError(f"{source.path}: {HEAD!r} is missing, against tie_word_embeddings false; complete the weights")
    check_shapes(expected, shapes, str(source.path), advice)
    return dataclasses.replace(source, shapes=expected)


def _digest(source: WeightSource, name: str) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(source.read(name))).digest()


def check_shapes(expected: dict[str, tuple], found: dict[str, tuple], where: str, advice: str | None = None) -> None:
    """Compare names and shapes of a model with those of a file. Raises UserError that names the first difference."""
    advice = advice or "choose the checkpoint of this model, or set the model options that it was made with"
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{where}: the parameter {name!r} {list(shape)} of the model is not in it; {advice}")
        if found[name] != shape:
            raise UserError(f"{where}: {name!r} has shape {list(found[name])}, not the model's {list(shape)}; {advice}")
    extra = sorted(set(found) - set(expected))
    if extra:
        raise UserError(f"{where}: {extra[0]!r} {list(found[extra[0]])} is not in the model; {advice}")


def load_into(model, source: WeightSource, title: str | None = None) -> None:
    """Set the parameters of a PanguForCausalLM from `source`, one at a time. Raises UserError when they do not fit."""
    import mindspore as ms

    parameters = {parameter.name: parameter for parameter in model.get_parameters()}
    for name, array in iter_tensors(fit(source, model.options), title):
        parameters[name].set_data(ms.Tensor(array).astype(parameters[name].dtype))


def identity(source: WeightSource, hash_file: Callable[[Path], str] = files.sha256_file) -> str:
    """SHA-256 of the weights: of the file, or of the names and hashes of index and shards."""
    if source.sha256 is not None:
        return source.sha256
    if len(source.files) == 1:
        return hash_file(source.files[0])
    return files.sha256_json({path.name: hash_file(path) for path in source.files})


def random_source(options: ModelOptions, seed: int) -> WeightSource:
    """The initial weights of a new model, computed when they are read."""
    from mindspore_impl.model.pangu import initial_value, parameter_shapes

    shapes = parameter_shapes(options)
    return WeightSource(
        Path("random"), (), shapes, lambda name: initial_value(name, shapes[name], options, seed), options
    )


def stored_dtype(config: dict | None) -> str | None:
    """The key of DTYPES that a config.json names, if it names one."""
    config = config or {}
    return _TORCH_DTYPES.get(str(config.get("torch_dtype") or config.get("dtype")).removeprefix("torch."))


def write_hf(folder: Path, source: WeightSource, config: dict, dtype: str, shard_bytes: int) -> list[str]:
    """Fill a folder with config.json and weights; return the names of the files.

    Args:
        folder: an empty folder.
        source: the weights.
        config: the content of config.json but for the dtype.
        dtype: of the stored weights, a key of DTYPES.
        shard_bytes: where the next shard begins (one shard: no index).

    Raises UserError for a value that does not fit `dtype`, OSError when the disk is full.
    """
    stored = DTYPES[dtype]
    shards = _split(source.shapes, stored, shard_bytes)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    stream = iter_tensors(source, "export")
    for name, shapes in zip(names, shards, strict=True):
        tensor_file.write_file(folder / name, shapes, stored, islice(stream, len(shapes)))
    next(stream, None)  # ends the progress bar
    if count > 1:
        total = sum(tensor_file.data_bytes(shape, stored) for shape in source.shapes.values())
        places = {tensor: name for name, shapes in zip(names, shards, strict=True) for tensor in shapes}
        files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
        names.append(INDEX)
    key = "dtype" if "dtype" in config else "torch_dtype"
    torch_dtype = next(name for name, ours in _TORCH_DTYPES.items() if ours == dtype)
    files.write_json(folder / hf_config.CONFIG, {**config, key: torch_dtype})
    return [*names, hf_config.CONFIG]


def _split(shapes: dict[str, tuple[int, ...]], dtype: str, limit: int) -> list[dict[str, tuple[int, ...]]]:
    """The tensors in order, cut into shards of at most `limit` bytes (one larger tensor is a shard of its own)."""
    shards: list[dict] = [{}]
    size = 0
    for name, shape in shapes.items():
        more = tensor_file.data_bytes(shape, dtype)
        if shards[-1] and size + more > limit:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += more
    return shards
