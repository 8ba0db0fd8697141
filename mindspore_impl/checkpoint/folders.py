"""Find, verify and select the checkpoints in a stage's folder."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.model import hf_config

VERSION = 1
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
POSITION, MANIFEST, CONFIG = "position.json", "manifest.json", hf_config.CONFIG
LATEST, BEST = "LATEST", "BEST"
_NAME = re.compile(r"step_[0-9]{8,}")


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint. `weights_sha256` is the hash of the bytes of weights.safetensors.

    tokenizer_sha256: of the tokenizer that it was trained with; None in an older one.
    """

    path: Path
    step: int
    position: dict
    weights_path: Path
    optimizer_path: Path
    weights_sha256: str
    metric: float | None = None
    tokenizer_sha256: str | None = None


class _Newer(UserError):
    """Written by a newer program: it is not damaged, so no earlier checkpoint may replace it."""


def latest(folder: str | Path, hashed: bool = True) -> Checkpoint | None:
    """The newest published checkpoint that is intact, or None when `folder` holds none.

    hashed=False: its files are there with their sizes; their content is not read.
    A damaged one is reported on stderr. Raises UserError when all are damaged, or a newer program wrote one of them.
    """
    folder = Path(folder)
    names, pointer = names_of(folder), pointer_of(folder, LATEST)
    if not names and not (folder / LATEST).exists():
        return None
    if pointer in names:
        return _first_intact(folder, names[names.index(pointer) :], [], hashed)  # a newer one was never published
    fault = "missing or unreadable" if pointer is None else f"names {pointer}, which is not there"
    return _first_intact(folder, names, [f"{folder / LATEST}: {fault}"], hashed)


def selected(folder: str | Path, which: str, hashed: bool = True) -> Checkpoint:
    """The checkpoint that later stages use: "last" or "best" (lowest validation loss); UserError when there is none.

    A damaged best one is reported on stderr and the newest intact one is used. hashed: as in `latest`.
    """
    folder = Path(folder)
    if which == "best":
        pointer = pointer_of(folder, BEST)
        if pointer is None:
            raise UserError(f"{folder}: no best checkpoint is recorded; name data.validation, or set train.select=last")
        others = [name for name in names_of(folder) if name != pointer]
        return _first_intact(folder, [pointer, *others], [], hashed)
    found = latest(folder, hashed)
    if found is None:
        raise UserError(f"{folder}: holds no checkpoint; run the stage that writes it first")
    return found


def step_of(name: str) -> int:
    """The step of a folder called `name`."""
    return int(name.removeprefix("step_"))


def names_of(folder: Path) -> list[str]:
    """Names of the numbered folders, newest first."""
    if not folder.is_dir():
        return []
    found = [path.name for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def pointer_of(folder: Path, pointer: str) -> str | None:
    """The folder's name that LATEST or BEST holds; None where the file is missing or holds anything else."""
    try:
        name = (folder / pointer).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if _NAME.fullmatch(name) else None


def read_manifest(path: Path) -> dict:
    """The manifest of a checkpoint whose files all have their full size; UserError says what is wrong otherwise."""
    files.inside(path.parent, path.name)
    manifest = files.read_json(path / MANIFEST)
    try:
        version, step, entries = manifest["version"], manifest["step"], manifest["files"]
        sizes = {name: int(entry["bytes"]) for name, entry in entries.items() if str(entry["sha256"])}
        float(manifest["metric"] or 0)
        for name in (WEIGHTS, OPTIMIZER, POSITION):
            sizes[name]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _check_version(path, manifest.get("version") if isinstance(manifest, dict) else None)
        raise UserError(f"{path / MANIFEST}: not the manifest of a checkpoint ({error!r})") from error
    _check_version(path, version)
    if step != step_of(path.name):
        raise UserError(f"{path / MANIFEST}: it is of step {step}, not of this folder")
    for name, size in sizes.items():
        file = files.inside(path, name)
        if not file.is_file():
            raise UserError(f"{file}: the file is missing")
        if file.stat().st_size != size:
            raise UserError(f"{file}: {file.stat().st_size} bytes instead of {size} (cut or half-written)")
    return manifest


def _check_version(path: Path, version: object) -> None:
    if isinstance(version, int) and version > VERSION:
        raise _Newer(
            f"{path / MANIFEST}: a newer program wrote it (version {version} of the format, this one reads {VERSION}); "
            "continue with that program, or choose another run_dir"
        )
    if version != VERSION:
        raise UserError(f"{path / MANIFEST}: not the manifest of a checkpoint (version {version!r})")


def _verify(path: Path, hashed: bool) -> tuple[dict, dict]:
    """Return manifest and position of an intact checkpoint. Raises UserError that says what is damaged."""
    try:
        manifest = read_manifest(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    for name, entry in manifest["files"].items() if hashed else ():
        if files.sha256_file(path / name) != entry["sha256"]:
            raise UserError(f"{path / name}: its SHA-256 differs from the manifest (damaged)")
    return manifest, files.read_json(path / POSITION)


def _first_intact(folder: Path, names: list[str], problems: list[str], hashed: bool) -> Checkpoint:
    for name in names:
        try:
            manifest, position = _verify(folder / name, hashed)
        except _Newer:
            raise
        except UserError as error:
            problems.append(str(error))
            continue
        if problems:
            print(f"warning: {'; '.join(problems)}; {folder / name} is used instead", file=sys.stderr)
        return opened(folder / name, manifest, position)
    raise UserError(f"{folder}: no usable checkpoint: {'; '.join(problems)}; restore it, or remove it to start again")


def opened(path: Path, manifest: dict, position: dict) -> Checkpoint:
    """A checkpoint whose manifest and position have been read, or were just written."""
    digest = manifest["files"][WEIGHTS]["sha256"]
    known = digest, manifest["metric"], manifest.get("tokenizer_sha256")
    return Checkpoint(path, manifest["step"], position, path / WEIGHTS, path / OPTIMIZER, *known)


def tokenizer_of(path: Path) -> str | None:
    """The SHA-256 of the tokenizer that the manifest in a folder names; None where there is none, or it names none."""
    manifest = files.read_json(path / MANIFEST) if (path / MANIFEST).is_file() else None
    return manifest.get("tokenizer_sha256") if isinstance(manifest, dict) else None
