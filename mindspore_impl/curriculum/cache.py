"""Results of finished stages, kept under what decides them, so that runs which share a stage compute it once.

<cache>/<key>/entry.json, files/...   one result: its files with sizes and hashes, and a note about it
<cache>/locks/<key>                   held while a run computes that result; another one waits and takes it then

A key holds the stage's fingerprint and the numerics it ran with. An entry appears whole (renamed into place) and is
verified whenever it is taken. Any entry, or the whole cache, can be deleted at any time; beyond a given size those not
used for longest are, whenever a result is added.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError

SCHEMA = 1
NOTE = "entry.json"
_WAIT_SECONDS = 0.5
# Weights are only ever replaced by renaming, never written in place: a link is safe and costs no room. Logs can grow.
_LINKED = ".safetensors"
_LEFT_OUT = {"stage.json"}  # it names the stage, its inputs and its time in one run


@dataclass
class Entry:
    """One result in a cache; `path` is None without a cache, and then nothing is found and nothing kept.

    limit: bytes that all entries may have together when a result is added; 0: no bound.
    """

    path: Path | None
    limit: int = 0

    def take(self, folder: Path) -> dict | None:
        """Put the result in place of `folder` and return the note that was kept with it; None when there is none.

        Rank 0 calls it. A damaged entry is reported, removed, and counts as none.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            content = _verified(self.path)
        except (UserError, OSError, KeyError, TypeError, AttributeError) as error:
            print(f"  cache: {self.path} is damaged ({error}); it is removed and computed again", flush=True)
            shutil.rmtree(self.path, ignore_errors=True)
            return None
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _temporary_beside(folder) as temporary:
                for name in content["files"]:
                    _bring(self.path / "files" / name, temporary / name)
                shutil.rmtree(folder, ignore_errors=True)  # at most a half-made copy of this very result
                os.rename(temporary, folder)
            with suppress(OSError):  # a cache of somebody else's
                os.utime(self.path)  # its last use
        except OSError as error:
            raise UserError(f"{folder}: cannot be filled from {self.path} ({error.strerror})") from error
        return content["note"]

    def keep(self, folder: Path, note: dict) -> None:
        """Keep the files of `folder` with `note`, on rank 0 alone. Where that fails there is a message and no entry."""
        if self.path is None or self.path.exists():
            return
        try:
            with _temporary_beside(self.path) as temporary:
                found = {}
                for path in sorted(folder.rglob("*")):
                    name = path.relative_to(folder)
                    hidden = any(part.startswith(".") for part in name.parts)  # leftovers of a kill: .name.tmp
                    if path.is_file() and not path.is_symlink() and not hidden and str(name) not in _LEFT_OUT:
                        target = temporary / "files" / name
                        _bring(path, target)
                        os.chmod(target, 0o444)
                        found[str(name)] = {"bytes": target.stat().st_size, "sha256": files.sha256_file(target)}
                content = {"schema": SCHEMA, "key": self.path.name, "note": note, "files": found}
                files.write_sealed(temporary / NOTE, content)
                os.rename(temporary, self.path)
            files.fsync_folder(self.path.parent)
            if self.limit:
                _shrink(self.path, self.limit)
        except (OSError, UserError) as error:
            print(f"  cache: {self.path} could not be kept ({error}); the run goes on", flush=True)


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """A folder beside `path` to be renamed to it; removed at the end if it was not."""
    with tempfile.TemporaryDirectory(".tmp", f".{path.name}.", path.parent, ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextmanager
def entry(cache: str | None, fingerprint: str, limit: int = 0) -> Iterator[Entry]:
    """The entry of `fingerprint` in the folder `cache` (None: no cache), locked: nobody else computes it meanwhile.

    Every rank calls it, after runtime.setup; rank 0 holds the lock. limit: see Entry. Raises UserError when the folder
    cannot be written.
    """
    if cache is None:
        yield Entry(None)
        return
    key = f"{fingerprint}-{runtime.numerics()}"
    lock = None

    def attempt() -> bool:
        nonlocal lock
        lock = files.try_lock(Path(cache) / "locks" / key)
        return lock is not None

    try:
        if not ranks.on_rank_zero(attempt):
            print("  cache: another run computes this now; waiting for it", flush=True)
            # All ranks ask together, so that none seems to hang.
            while not ranks.on_rank_zero(attempt):
                if ranks.should_stop():
                    raise ranks.Stopped(agreed=True)
                time.sleep(_WAIT_SECONDS)
        yield Entry(Path(cache) / key, limit)
    finally:
        if lock is not None:
            lock.close()


def _shrink(added: Path, limit: int) -> None:
    """Remove entries beside `added`, the longest unused first, until all have at most `limit` bytes together.

    An entry whose lock somebody holds is in use and stays, as `added` does.
    """
    notes = [note for note in added.parent.glob(f"*/{NOTE}") if not note.parent.name.startswith(".")]
    last_use = {note.parent: note.parent.stat().st_mtime for note in notes}
    sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in last_use}
    left = sum(sizes.values())
    for path in sorted(last_use, key=last_use.get):
        if left <= limit:
            return
        lock = files.try_lock(added.parent / "locks" / path.name) if path != added else None
        if lock is not None:
            with lock:
                gone = path.with_name(f".{path.name}.tmp")  # never seen half removed
                shutil.rmtree(gone, ignore_errors=True)  # of a removal that was killed
                os.rename(path, gone)
                shutil.rmtree(gone)
            left -= sizes[path]


def _verified(path: Path) -> dict:
    """The content of entry.json, verified together with the files of the entry.

    Raises UserError (or an error of parsing) when it or a file differs from what was stored.
    """
    content = files.read_json(path / NOTE)
    intact = content["sha256"] and files.is_intact(content)
    if not intact or content["schema"] != SCHEMA or content["key"] != path.name:
        raise UserError(f"{NOTE} was changed")
    for name, state in content["files"].items():
        file = files.inside(path / "files", name)
        if not file.is_file() or file.stat().st_size != state["bytes"] or files.sha256_file(file) != state["sha256"]:
            raise UserError(f"{name} is missing or was changed")
    return content


def _bring(source: Path, target: Path) -> None:
    """A link to a weights file where the file system can, else a copy (which can be written to)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == _LINKED:
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
