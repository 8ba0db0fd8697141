"""Checkpoints: a numbered folder of safetensors and JSON that is complete and intact, or is not used.

    <folder>/step_00000020/{weights.safetensors, optimizer.safetensors, position.json, manifest.json}
    <folder>/LATEST, <folder>/BEST    the names of two such folders; written last

A folder is filled under a temporary name, flushed to disk and renamed; `manifest.json` holds size and SHA-256 of the
other files, so a truncated, changed or missing file is noticed and an earlier checkpoint is used instead.
"""

import dataclasses
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.model import hf_config
from mindspore_impl.model.adapter_file import merged, read_adapters
from mindspore_impl.model.gguf import is_gguf, open_gguf
from mindspore_impl.model.weights import WeightSource, check_shapes, fit, is_hf_folder, open_file, open_hf

VERSION = 1
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
POSITION, MANIFEST, CONFIG = "position.json", "manifest.json", hf_config.CONFIG
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint. `weights_sha256` is the hash of the bytes of weights.safetensors."""

    path: Path
    step: int
    position: dict
    weights_path: Path
    optimizer_path: Path
    weights_sha256: str
    metric: float | None = None


def save(
    folder: str | Path,
    step: int,
    weights: dict[str, np.ndarray] | Callable[[Path], None],
    optimizer: dict[str, np.ndarray],
    position: dict,
    keep: int,
    metric: float | None = None,
    config: dict | None = None,
) -> Checkpoint:
    """Write checkpoint `step` durably, point LATEST (and BEST, if `metric` is the lowest so far) at it, drop old ones.

    weights: fp32 master weights by parameter name, or a function that writes them to a safetensors file; optimizer: its
    state by name; position: JSON values (step, window, counters); keep: how many of the newest stay besides the best;
    metric: validation loss, lower is better; config: content of a config.json that is kept beside the weights.
    Raises UserError when the disk is full or not writable; earlier checkpoints are then untouched.
    """
    folder = Path(folder)
    name = f"step_{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=folder))
        try:
            if config is not None:
                files.write_json(temporary / CONFIG, config)
            manifest = _fill(temporary, step, weights, optimizer, position, metric)
            _replace_folder(temporary, folder / name)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / name}: the checkpoint cannot be written ({error}); earlier checkpoints are kept, "
            "free some room and run again"
        ) from error
    if metric is not None and math.isfinite(metric) and metric < _best_metric(folder, name):
        files.write_text(folder / "BEST", name + "\n")
    files.write_text(folder / "LATEST", name + "\n")
    _retain(folder, max(1, keep))
    return _opened(folder / name, manifest, position)


def latest(folder: str | Path) -> Checkpoint | None:
    """The newest published checkpoint that is intact, or None when `folder` holds none.

    A damaged one is reported on stderr together with the earlier one that is used. Raises UserError when every one
    is damaged.
    """
    folder = Path(folder)
    names = _names(folder)
    if not names:
        return None
    pointer = _pointer(folder, "LATEST")
    if pointer in names:
        names = names[names.index(pointer) :]  # a newer folder was renamed but never published
    return _first_intact(folder, names, [] if pointer else [f"{folder / 'LATEST'}: missing or unreadable"])


def selected(folder: str | Path, which: str) -> Checkpoint:
    """The checkpoint that a stage hands on: "last" or "best" (lowest validation loss).

    A damaged best one is reported on stderr and the newest intact one is used. Raises UserError when there is none.
    """
    folder = Path(folder)
    if which == "best":
        pointer = _pointer(folder, "BEST")
        if pointer is None:
            raise UserError(
                f"{folder}: no best checkpoint is recorded (no validation with a finite loss was run); name validation "
                "sets in the stage's data, or set train.select=last"
            )
        others = [name for name in _names(folder) if name != pointer]
        return _first_intact(folder, [pointer, *others], [])
    found = latest(folder)
    if found is None:
        raise UserError(f"{folder}: holds no checkpoint; run the stage that writes it first")
    return found


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read weights as float32 arrays by name, from a checkpoint folder or a plain .safetensors file.

    Raises UserError when the file is missing, is not safetensors, or holds something else than floats NumPy knows.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    arrays = read_arrays(file)
    for name, array in arrays.items():
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise UserError(
                f"{file}: {name!r} is {array.dtype}, not a float; store the weights as float32 safetensors first"
            )
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def read_arrays(file: str | Path) -> dict[str, np.ndarray]:
    """Read every array of one safetensors file. Raises UserError that names the file."""
    file = Path(file)
    if not file.is_file():
        raise UserError(f"{file}: no such file; name a checkpoint folder or a .safetensors file")
    try:
        return load_file(file)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file}: cannot be read as safetensors of NumPy types ({error}); it is damaged, or holds a type such as "
            "bfloat16: store the weights as float32 safetensors first"
        ) from error


def open_weights(path: str | Path, which: str = "last", base: Callable[[], WeightSource] | None = None) -> WeightSource:
    """Weights on disk, to be read one tensor at a time: a Hugging Face folder, a checkpoint, a .safetensors file or a
    .gguf file.

    A folder of checkpoints, or one that holds such a folder as checkpoints/, stands for its last or best one (`which`).
    `base` opens the weights that LoRA adapters were trained on; a checkpoint of adapters stands for those weights with
    the adapters merged in. Raises UserError when there is nothing, or it is damaged or of a model that is not
    supported, or when adapters come without a base, or with another one.
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
        chosen = selected(inner if inner.is_dir() else path, which)  # verified, so its hash need not be computed again
        folder, digest = chosen.path, chosen.weights_sha256
    source = dataclasses.replace(open_file(folder / WEIGHTS), path=folder, sha256=digest)
    adapters = read_adapters(folder / WEIGHTS)
    if adapters is not None:
        if base is None:
            raise UserError(
                f"{folder}: holds LoRA adapters alone; name the stage inside its run, which knows their base"
            )
        return merged(source, adapters, base())
    if not (folder / CONFIG).is_file():
        return source
    options, config = hf_config.read_config(folder)
    return dataclasses.replace(fit(source, options), options=options, config=config)


def weights_of(model, trained: bool = False) -> dict[str, np.ndarray]:
    """All parameters of a Cell by name, or those alone that are trained, as float32 arrays (copies)."""
    return {parameter.name: np.array(parameter.asnumpy(), np.float32) for parameter in _parameters(model, trained)}


def _parameters(model, trained: bool) -> list:
    return list(model.trainable_params() if trained else model.get_parameters())


def load_into(model, weights: dict[str, np.ndarray], where: str, trained: bool = False) -> None:
    """Set every (trained) parameter of the Cell `model` from `weights`; names and shapes must agree exactly.

    Raises UserError that names `where`, the first parameter that differs, both shapes, and what to do.
    """
    import mindspore as ms

    parameters = {parameter.name: parameter for parameter in _parameters(model, trained)}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    check_shapes(shapes, {name: tuple(array.shape) for name, array in weights.items()}, where)
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(np.ascontiguousarray(weights[name], np.float32)).astype(parameter.dtype))


def _fill(folder: Path, step: int, weights, optimizer: dict, position: dict, metric: float | None) -> dict:
    """Write the four files of a checkpoint into `folder`, flushed to disk; return the manifest."""
    for name, arrays in ((WEIGHTS, weights), (OPTIMIZER, optimizer)):
        if callable(arrays):
            arrays(folder / name)
        else:
            save_file({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}, folder / name)
        os.chmod(folder / name, 0o644)
    files.write_json(folder / POSITION, position)
    entries = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": files.sha256_file(folder / name)}
        for name in (WEIGHTS, OPTIMIZER, POSITION)
    }
    manifest = {"version": VERSION, "step": step, "metric": metric, "files": entries}
    files.write_json(folder / MANIFEST, manifest)
    for name in (WEIGHTS, OPTIMIZER):
        with open(folder / name, "rb+") as file:
            os.fsync(file.fileno())
    os.chmod(folder, 0o755)
    files.fsync_folder(folder)
    return manifest


def _replace_folder(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; a folder that is already there (a damaged or unpublished one) goes away."""
    if target.exists():
        _discard(target)
    os.rename(temporary, target)
    files.fsync_folder(target.parent)


def _discard(path: Path) -> None:
    """Remove a checkpoint so that a half-removed one never looks like a checkpoint."""
    trash = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    os.rename(path, trash / path.name)
    shutil.rmtree(trash, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary folders of a writer that was killed."""
    for path in folder.glob(".step_*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _retain(folder: Path, keep: int) -> None:
    names = _names(folder)
    best, last = _pointer(folder, "BEST"), _pointer(folder, "LATEST")
    published = [name for name in names if last is None or name <= last]
    for name in names:
        if name not in (*published[:keep], best, last):
            _discard(folder / name)


def _names(folder: Path) -> list[str]:
    """Names of the numbered folders, newest first."""
    if not folder.is_dir():
        return []
    found = [path.name for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda name: int(name.removeprefix("step_")), reverse=True)


def _pointer(folder: Path, pointer: str) -> str | None:
    try:
        name = (folder / pointer).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if _NAME.fullmatch(name) else None


def _best_metric(folder: Path, name: str) -> float:
    """Metric of the checkpoint that BEST names, or infinity; `name` itself does not count (it is being replaced)."""
    best = _pointer(folder, "BEST")
    if best is None or best == name:
        return math.inf
    try:
        metric = _verify(folder / best)[0]["metric"]
    except UserError:
        return math.inf
    return math.inf if metric is None else metric


def _verify(path: Path) -> tuple[dict, dict]:
    """Return manifest and position of an intact checkpoint. Raises UserError that says what is damaged."""
    manifest = files.read_json(path / MANIFEST)
    try:
        entries = {
            name: (manifest["files"][name]["bytes"], manifest["files"][name]["sha256"])
            for name in (WEIGHTS, OPTIMIZER, POSITION)
        }
        version, step, _ = manifest["version"], manifest["step"], manifest["metric"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / MANIFEST}: not the manifest of a checkpoint (no {error})") from error
    if version != VERSION:
        raise UserError(f"{path / MANIFEST}: version {version} of the format, this program reads {VERSION}")
    if f"step_{step:08d}" != path.name:
        raise UserError(f"{path / MANIFEST}: it is of step {step}, not of this folder")
    for name, (size, digest) in entries.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file}: the file is missing")
        if file.stat().st_size != size:
            raise UserError(f"{file}: {file.stat().st_size} bytes instead of {size} (cut or half-written)")
        if files.sha256_file(file) != digest:
            raise UserError(f"{file}: its SHA-256 differs from the manifest (damaged)")
    return manifest, files.read_json(path / POSITION)


def _first_intact(folder: Path, names: list[str], problems: list[str]) -> Checkpoint:
    for name in names:
        try:
            manifest, position = _verify(folder / name)
        except UserError as error:
            problems.append(str(error))
            continue
        if problems:
            print(f"warning: {'; '.join(problems)}; {folder / name} is used instead", file=sys.stderr)
        return _opened(folder / name, manifest, position)
    raise UserError(
        f"{folder}: no usable checkpoint: {'; '.join(problems)}; restore the folder from a copy, "
        "or remove it to start this stage again"
    )


def _opened(path: Path, manifest: dict, position: dict) -> Checkpoint:
    digest = manifest["files"][WEIGHTS]["sha256"]
    return Checkpoint(path, manifest["step"], position, path / WEIGHTS, path / OPTIMIZER, digest, manifest["metric"])
