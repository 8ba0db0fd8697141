"""Read weights from a checkpoint or another file, and load them into a model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mindspore_impl.checkpoint.folders import CONFIG, WEIGHTS, selected, tokenizer_of
from mindspore_impl.errors import UserError
from mindspore_impl.model import hf_config
from mindspore_impl.model.adapter_file import merged, read_adapters
from mindspore_impl.model.gguf import is_gguf, open_gguf
from mindspore_impl.model.weights import WeightSource, check_shapes, fit, is_hf_folder, open_file, open_hf


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read weights as float32 arrays by name, from a checkpoint folder or a plain .safetensors file.

    Raises UserError when the file is missing, is not safetensors, or holds something else than floats NumPy knows.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    arrays = read_arrays(file)
    for name, array in arrays.items():
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise UserError(f"{file}: {name!r} is {array.dtype}; store the weights as float32 safetensors")
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def read_arrays(file: str | Path) -> dict[str, np.ndarray]:
    """Read every array of one safetensors file. Raises UserError that names the file."""
    file = Path(file)
    if not file.is_file():
        raise UserError(f"{file}: no such file; name a checkpoint folder or a .safetensors file")
    try:
        return load_file(file)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: damaged, or such as bfloat16 ({error}); store float32 safetensors") from error


def open_weights(
    path: str | Path, which: str = "last", base: Callable[[], WeightSource] | None = None, hashed: bool = True
) -> WeightSource:
    """Open weights on disk: a Hugging Face folder, a checkpoint, a .safetensors file or a .gguf file.

    A folder of checkpoints, or one with a subfolder checkpoints/, means its last or best one (`which`). `base` opens
    the weights that LoRA adapters were trained on: their checkpoint is opened as the merged weights. hashed=False: the
    content of a checkpoint is not compared with its hashes, only headers and sizes are read. Raises UserError when
    nothing is there, it is damaged or not supported, or adapters have no base or another one.
    """
    path = Path(path)
    if is_gguf(path):
        return open_gguf(path)
    if path.is_file() and path.name != WEIGHTS:
        return open_file(path)
    if path.is_file():
        path = path.parent
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; name a checkpoint, a Hugging Face folder or a .safetensors")
    if is_hf_folder(path):
        return open_hf(path)
    folder, digest = path, None
    if not (path / WEIGHTS).is_file():
        inner = path / "checkpoints"
        chosen = selected(inner if inner.is_dir() else path, which, hashed)  # its hash is in its manifest
        folder, digest = chosen.path, chosen.weights_sha256
    known = {"path": folder, "sha256": digest, "tokenizer_sha256": tokenizer_of(folder)}
    source = dataclasses.replace(open_file(folder / WEIGHTS), **known)
    adapters = read_adapters(folder / WEIGHTS)
    if adapters is not None:
        if base is None:
            raise UserError(f"{folder}: holds LoRA adapters alone; name the stage inside its run")
        return merged(source, adapters, base())
    if not (folder / CONFIG).is_file():
        return source
    options, config = hf_config.read_config(folder)
    return dataclasses.replace(fit(source, options), options=options, config=config)


def weights_of(model, trained: bool = False) -> dict[str, np.ndarray]:
    """Copies of all (or only the trained) parameters of a Cell by name, float32."""
    return {parameter.name: np.array(parameter.asnumpy(), np.float32) for parameter in _parameters(model, trained)}


def _parameters(model, trained: bool) -> list:
    return list(model.trainable_params() if trained else model.get_parameters())


def load_into(model, weights: dict[str, np.ndarray], where: str, trained: bool = False) -> None:
    """Set every (trained) parameter of the Cell `model` from `weights`; names and shapes must agree exactly.

    Raises UserError that names `where` and the first parameter that differs, with both shapes.
    """
    import mindspore as ms

    parameters = {parameter.name: parameter for parameter in _parameters(model, trained)}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    check_shapes(shapes, {name: tuple(array.shape) for name, array in weights.items()}, where)
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(np.ascontiguousarray(weights[name], np.float32)).astype(parameter.dtype))
