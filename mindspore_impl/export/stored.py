"""The weights file of a package: names, shapes, dtypes, writing, checking and reading.

    embedding, lm_head, biases    fp32, or fp16 in the precisions fp16 and int8
    projections of the layers     the same, or int8 values with a float32 scale an output channel
    norm weights, rotary tables   float32 always

Names are the published ones; a scale stands beside its weight as `...scale`, the tables are `rotary.cos` and
`rotary.sin`. Legend: T cache slots, C head dimension, O outputs, I inputs.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import head_dim, parameter_shapes
from mindspore_impl.model.tensor_file import encode_header
from mindspore_impl.ops.rotary import rotary_table

COS, SIN = "rotary.cos", "rotary.sin"
LEVELS = 127  # of int8; -128 is not used, so that the scale is the same in both directions
_CODES = {"float32": "F32", "float16": "F16", "int8": "I8"}  # NumPy's name: that of safetensors


@dataclass(frozen=True)
class Stored:
    """Shape and NumPy dtype name of one stored tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def compute_dtype(precision: str) -> str:
    """NumPy's name of the dtype that matrix products and the cache have."""
    return "float32" if precision == "fp32" else "float16"


def scale_name(weight: str) -> str:
    """The name of the scale beside an int8 weight."""
    return weight.removesuffix("weight") + "scale"


def is_quantised(name: str, precision: str) -> bool:
    """Whether a parameter is kept in int8: the projections of the layers, not embedding, head, norms or biases."""
    return precision == "int8" and name.startswith("model.layers.") and name.endswith("_proj.weight")


def stored_tensors(options: ModelOptions, precision: str, slots: int) -> dict[str, Stored]:
    """Everything that the graphs of a package read, by name, in the order of the file."""
    found: dict[str, Stored] = {}
    for name, shape in parameter_shapes(options).items():
        if is_quantised(name, precision):
            found[name] = Stored(shape, "int8")
            found[scale_name(name)] = Stored((shape[0], 1), "float32")
        else:
            found[name] = Stored(shape, "float32" if name.endswith("norm.weight") else compute_dtype(precision))
    for name in (COS, SIN):
        found[name] = Stored((slots, head_dim(options)), "float32")
    return found


def write_weights(
    path: Path, options: ModelOptions, precision: str, slots: int, value_of: Callable[[str], np.ndarray]
) -> None:
    """Write the weights file, one tensor at a time.

    Args:
        path: the file.
        options: sizes of the model.
        precision: of PRECISIONS.
        slots: T, rows of the rotary tables.
        value_of: a parameter of the model in float32, by name.

    Raises UserError that names a tensor too large for float16, or a disk that is full.
    """
    wanted = stored_tensors(options, precision, slots)

    def blocks() -> Iterator[bytes]:
        yield encode_header((name, _CODES[one.dtype], one.shape, one.size) for name, one in wanted.items())
        forms = _forms(options, precision, slots, value_of)
        for (name, stored), (found, array) in zip(wanted.items(), forms, strict=True):
            if (found, array.shape, array.dtype.name) != (name, stored.shape, stored.dtype):
                raise ValueError(f"{found} {array.dtype}{array.shape} came instead of {name} {stored}")
            yield array.tobytes()

    files.atomic_write(path, lambda temporary: files.write_blocks(temporary, blocks()) and None)


def quantise(weight_OI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 weight_OI -> (int8 values_OI, float32 scale_O1) with |weight - values * scale| <= scale / 2.

    A channel of zeros gets the scale 1.
    """
    peak_O1 = np.abs(weight_OI).max(axis=1, keepdims=True)
    scale_O1 = np.where(peak_O1 > 0, peak_O1 / np.float32(LEVELS), np.float32(1.0)).astype(np.float32)
    scale_O1 = np.maximum(scale_O1, np.finfo(np.float32).tiny)  # a channel below 1e-36 becomes zeros
    values_OI = np.clip(np.rint(weight_OI / scale_O1), -LEVELS, LEVELS).astype(np.int8)
    return values_OI, scale_O1


def _forms(options, precision, slots, value_of) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array as it is stored) in the order of `stored_tensors`.

    The first half of the sines is negative, since the graphs only swap the halves.
    """
    for name in parameter_shapes(options):
        value = value_of(name)
        if is_quantised(name, precision):
            values_OI, scale_O1 = quantise(value)
            yield name, values_OI
            yield scale_name(name), scale_O1
        elif name.endswith("norm.weight"):
            yield name, value
        else:
            with np.errstate(over="ignore"):
                narrow = value.astype(compute_dtype(precision), copy=False)
            if not np.isfinite(narrow).all():
                largest = np.abs(value).max()
                raise UserError(f"{name}: holds {largest:g}, too large for float16; export with --precision fp32")
            yield name, narrow
    cos_TC, sin_TC = rotary_table(head_dim(options), options.rope_theta, slots)
    sin_TC[:, : head_dim(options) // 2] *= -1
    yield from ((COS, cos_TC), (SIN, sin_TC))


def check_weights(path: Path, wanted: dict[str, Stored]) -> None:
    """Hold the header of a weights file against what the graphs read. Raises UserError naming file and tensor."""
    codes = {code: name for name, code in _CODES.items()}
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        kinds = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    found = {name: Stored(shape, codes.get(code, code)) for name, (shape, code) in kinds.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if (pair := (found.get(name), wanted.get(name)))[0] != pair[1]:
            there, needed = (f"{one.dtype} {list(one.shape)}" if one else "absent" for one in pair)
            raise UserError(f"{path}: {name!r} is {there} there, the manifest's model needs {needed}; export again")


def read_weights(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of a weights file, one at a time. Raises UserError that names the file."""
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            yield name, file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not the weights of a package ({error}); export again") from error
