"""Write a checkpoint atomically: fill a folder, flush it, rename it, update the pointers, delete old ones.

A kill leaves at most a temporary folder, or one that LATEST does not name yet; the next save removes both.
"""

import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from mindspore_impl import files
from mindspore_impl.checkpoint import folders
from mindspore_impl.checkpoint.folders import Checkpoint
from mindspore_impl.errors import UserError
from mindspore_impl.model.tensor_file import encode_header

# In the order in which the safetensors library stores them, so that equal arrays give equal files.
_DTYPES = {"<i8": "I64", "<f8": "F64", "<f4": "F32", "<i4": "I32", "<f2": "F16"}
_BLOCK = 1 << 22  # bytes hashed and written at a time


def save(
    folder: str | Path,
    step: int,
    weights: dict[str, np.ndarray] | Callable[[Path], None],
    optimizer: dict[str, np.ndarray],
    position: dict,
    keep: int,
    metric: float | None = None,
    config: dict | None = None,
    keep_every: int = 0,
    tokenizer_sha256: str | None = None,
) -> Checkpoint:
    """Write checkpoint `step`, set LATEST (and BEST, if `metric` is the lowest so far) to it, delete old ones.

    Args:
        folder: of the stage's checkpoints.
        step: applied training steps.
        weights: float32 master weights by name, or a function that writes them to a safetensors file.
        optimizer: its state by name.
        position: JSON values that training resumes from.
        keep: newest checkpoints that are kept, besides the best.
        metric: validation loss, lower is better.
        config: content of config.json, which describes the model.
        keep_every: checkpoints of every such step are never deleted; 0: none.
        tokenizer_sha256: of the tokenizer that the weights belong to, where it is known.

    Raises UserError when the disk is full or not writable; earlier checkpoints are then untouched.
    """
    folder, name = Path(folder), f"step_{step:08d}"
    contents = {folders.WEIGHTS: weights, folders.OPTIMIZER: optimizer, folders.POSITION: position}
    if config is not None:
        contents[folders.CONFIG] = config
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=folder))
        try:
            manifest = _fill(
                temporary, contents, {"step": step, "metric": metric, "tokenizer_sha256": tokenizer_sha256}
            )
            if os.path.lexists(folder / name):  # damaged or unpublished
                _discard(folder / name)
            os.rename(temporary, folder / name)
            files.fsync_folder(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / name}: cannot be written ({error}), earlier ones stay; free disk space") from error
    if metric is not None and math.isfinite(metric) and metric < _best_metric(folder, name):
        files.write_text(folder / folders.BEST, name + "\n")
    files.write_text(folder / folders.LATEST, name + "\n")
    _retain(folder, max(1, keep), keep_every)
    return folders.opened(folder / name, manifest, position)


def _fill(folder: Path, contents: dict, about: dict) -> dict:
    """Write the files of a checkpoint into `folder`, flushed to disk; return the manifest, which holds `about` too."""
    entries = {}
    for name, content in contents.items():
        size, digest = _write(folder / name, content, name.endswith(".json"))
        entries[name] = {"bytes": size, "sha256": digest}
    manifest = {"version": folders.VERSION, **about, "files": entries}
    _write(folder / folders.MANIFEST, manifest, True)
    os.chmod(folder, 0o755)
    files.fsync_folder(folder)
    return manifest


def _write(path: Path, content, is_json: bool) -> tuple[int, str]:
    """One file, flushed to disk: JSON, arrays by name, or whatever the function `content` writes; -> bytes, SHA-256."""
    if callable(content):
        content(path)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        return path.stat().st_size, files.sha256_file(path)
    return files.write_blocks(path, [files.json_bytes(content)] if is_json else safetensors_blocks(content))


def safetensors_blocks(arrays: dict[str, np.ndarray]) -> Iterator[memoryview]:
    """The bytes of a safetensors file, which are those that the library writes, without a copy of the arrays.

    (The library serialises under Python's lock, which would stop the training step for as long.)
    """
    order = list(_DTYPES)
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    names = sorted(plain, key=lambda name: (order.index(plain[name].dtype.str), name))
    entries = [(name, _DTYPES[plain[name].dtype.str], arrays[name].shape, plain[name].nbytes) for name in names]
    yield memoryview(encode_header(entries))
    for name in names:
        view = memoryview(plain[name].reshape(-1).view(np.uint8))
        for start in range(0, len(view), _BLOCK):
            yield view[start : start + _BLOCK]


def _discard(path: Path) -> None:
    """Remove a checkpoint in one rename, so that a partly removed one is never found. Needs no disk space."""
    trash = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    os.rename(path, trash)
    if trash.is_dir() and not trash.is_symlink():
        shutil.rmtree(trash, ignore_errors=True)
    else:
        trash.unlink()


def _retain(folder: Path, keep: int, keep_every: int) -> None:
    """Delete all but the best, the newest `keep` and every `keep_every`-th step."""
    names = folders.names_of(folder)
    best, last = folders.pointer_of(folder, folders.BEST), folders.pointer_of(folder, folders.LATEST)
    published = names[names.index(last) :]
    stay = {best, *published[:keep]}
    if keep_every > 0:
        stay |= {name for name in published if folders.step_of(name) % keep_every == 0}
    for name in names:
        if name not in stay:
            try:
                _discard(folder / name)
            except OSError as error:
                raise UserError(f"{folder / name}: {error.strerror}; remove it by hand and run again") from error


def _best_metric(folder: Path, name: str) -> float:
    """Metric of the checkpoint that BEST names, or infinity; `name` itself does not count (it is being replaced)."""
    best = folders.pointer_of(folder, folders.BEST)
    if best is None or best == name:
        return math.inf
    try:
        metric = folders.read_manifest(folder / best)["metric"]
    except (UserError, OSError):
        return math.inf
    return math.inf if metric is None else metric
