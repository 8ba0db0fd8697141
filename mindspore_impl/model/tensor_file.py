"""Read and write safetensors files one tensor at a time.

The format is 8 bytes of header length (little-endian), a JSON header {name: {dtype, shape, data_offsets}}, then the raw
values. Offsets follow from the shapes, so that a file is written without holding more than one tensor; bfloat16, which
NumPy lacks, is converted by its bits. Legend: `shape` in elements, sizes and offsets in bytes.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from mindspore_impl import files
from mindspore_impl.errors import UserError

STORED = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}  # bfloat16 as its bits
BLOCK = 1 << 22  # values converted at a time
_AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: its file, dtype (a key of STORED), shape, and the first byte of its values."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, in the order of their values.

    Raises UserError that names the file: a truncated or damaged one, or a tensor of another dtype than bfloat16,
    float16 or float32.
    """
    path = Path(path)
    with files.reading(path), open(path, "rb") as file:
        try:
            with safe_open(path, "numpy"):  # verifies the header against the size of the file
                pass
        except SafetensorError as error:
            size = path.stat().st_size
            raise UserError(f"{path}: cut off, or no safetensors file ({error}; {size} bytes); {_AGAIN}") from error
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, begin = entry["dtype"], entry["data_offsets"][0]
        if dtype not in STORED:
            kinds = ", ".join(STORED)
            raise UserError(f"{path}: {name!r} has the dtype {dtype}; only {kinds} are read: convert it first")
        found[name] = TensorInfo(path, dtype, tuple(entry["shape"]), 8 + length + begin)
    return found


def read_tensor(name: str, info: TensorInfo) -> np.ndarray:
    """Read one tensor as float32 (exact for all three dtypes).

    Raises UserError when it is truncated, or holds NaN or infinity.
    """
    flat = np.empty(math.prod(info.shape), np.float32)
    with files.reading(info.file), open(info.file, "rb") as file:
        file.seek(info.offset)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK]
            stored = np.fromfile(file, STORED[info.dtype], block.size)
            if stored.size < block.size:
                raise UserError(f"{info.file}: cut off inside {name!r}; {_AGAIN}")
            block[...] = from_bfloat16(stored) if info.dtype == "BF16" else stored
            if not np.isfinite(block).all():
                raise UserError(f"{info.file}: {name!r} holds NaN or infinity; choose intact weights")
    return flat.reshape(info.shape)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """uint16 bits of bfloat16 -> float32 of the same values (its upper half)."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 (contiguous) -> uint16 bits of the nearest bfloat16, ties to even. What is bfloat16 stays as it is."""
    bits = values.view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():  # the addition would carry some into infinity or zero
        kept = (bits[nan] >> 16).astype(np.uint16)
        kept[kept & 0x7F == 0] |= 0x40  # the payload was all in the lower half
        rounded[nan] = kept
    return rounded


def narrow(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> the stored form of `dtype` (a key of STORED), rounded to nearest even.

    Raises UserError that names the tensor when a finite value is too large for `dtype`.
    """
    if dtype == "F32":
        return values.astype(STORED["F32"], copy=False)
    if dtype == "BF16":
        stored = to_bfloat16(values)
        lost = (stored & 0x7FFF) == 0x7F80
    else:
        with np.errstate(over="ignore"):
            stored = values.astype(STORED["F16"])
        lost = np.isinf(stored)
    if lost.any() and np.isfinite(values[lost]).any():
        largest = np.abs(values[np.isfinite(values)]).max()
        raise UserError(f"{name!r} holds {largest:g}, too large for {dtype}; choose a wider dtype (bf16 or fp32)")
    return stored


def data_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of the values of one tensor."""
    return math.prod(shape) * STORED[dtype].itemsize


def encode_header(
    tensors: Iterable[tuple[str, str, Sequence[int], int]], metadata: dict[str, str] | None = None
) -> bytes:
    """The first bytes of a safetensors file, up to the values, as the library writes them.

    tensors: (name, dtype as "F32", shape, bytes of its values) in the order of the values.
    """
    header, position = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # aligns the values
    return len(text).to_bytes(8, "little") + text


def write_file(
    path: str | Path, shapes: dict[str, tuple[int, ...]], dtype: str, tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Write a safetensors file of one dtype from a stream of float32 arrays, over `path`: give a temporary name.

    shapes: name to shape, in the order in which `tensors` yields (name, array). Raises UserError for a value that does
    not fit `dtype`, OSError when the disk is full.
    """
    entries = [(name, dtype, shape, data_bytes(shape, dtype)) for name, shape in shapes.items()]
    with open(path, "wb") as file:
        file.write(encode_header(entries, {"format": "pt"}))  # transformers asks for this entry
        for (expected, shape), (name, array) in zip(shapes.items(), tensors, strict=True):
            if name != expected or array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"{name} {array.dtype}{list(array.shape)} came instead of {expected} {list(shape)}")
            flat = np.ascontiguousarray(array).reshape(-1)
            for start in range(0, flat.size, BLOCK):
                narrow(name, flat[start : start + BLOCK], dtype).tofile(file)
