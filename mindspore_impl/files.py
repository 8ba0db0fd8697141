"""Durable files: atomic writes, SHA-256, JSON and JSON lines, and paths that cannot leave their folder."""

import fcntl
import glob
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from mindspore_impl.errors import UserError


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Raise UserError that names `path` where it is missing, cannot be read or is not UTF-8."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error


@contextmanager
def _writing(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # NumPy's own have a text alone
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it over `path`.

    A reader sees the old content or the new one, never half of it; an error leaves the old file untouched.
    Raises UserError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with _writing(path, "choose another folder or free some room"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _writing(path, "the previous content is kept, free some room and run again"):
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def new_folder(path: str | Path, fill: Callable[[Path], object], replace: bool = False) -> None:
    """Let `fill` write the files of a folder that appears as `path` only when it is whole and flushed to disk.

    With `replace` it takes the place of a folder that is there, which goes at the very end, as does what killed
    writers of it left: for one process at a time. Raises UserError when `path` is there already and not an empty
    folder (with `replace`: no folder), or when it cannot be written; a folder that was there then stays.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path  # what it points to is replaced
    if path.is_file() or not replace and path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path}: is there already and not an empty folder; choose another name")
    with _writing(path, "choose another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        with _writing(path, "free some room and run again"):
            fill(temporary)
            for file in temporary.iterdir():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
            fsync_folder(temporary)
            os.chmod(temporary, 0o755)
            put_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}.tmp") if replace else ():
        shutil.rmtree(left, ignore_errors=True)  # mkdtemp adds eight characters


def put_folder(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`, durably.

    An existing folder is removed once the new one is in place, and restored when that fails with an OSError.
    """
    old = path.with_name(f".{path.name}.old.tmp")
    if path.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
    try:
        os.rename(temporary, path)
    except OSError:
        if old.is_dir():
            os.rename(old, path)
        raise
    fsync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what writers that were killed have left below `folder`: names as ".x.tmp". Nobody may be writing there."""
    for path, folders, names in os.walk(folder):
        for name in [name for name in (*folders, *names) if name.startswith(".") and name.endswith(".tmp")]:
            if name in folders:
                folders.remove(name)
            target = Path(path, name)
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target, ignore_errors=True)
            else:
                target.unlink(missing_ok=True)


def fsync_folder(folder: str | Path) -> None:
    """Make renames and new names inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(path: str | Path) -> IO | None:
    """An exclusive lock on the file `path` (made if need be), held until the result is closed or this process ends.

    None when another process holds it. Raises UserError when the file cannot be opened or its disk has no locks.
    """
    with _writing(path, "choose another folder"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a")  # noqa: SIM115 (held)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    except OSError as error:
        handle.close()
        raise UserError(f"{path}: cannot be locked ({error.strerror}); choose a folder on another disk") from error
    return handle


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused (they are not JSON)."""
    content = json_bytes(value)
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def write_sealed(path: str | Path, value: dict) -> None:
    """Write an object as `write_json` does, with the hash of its own content as `sha256`; see `is_intact`."""
    plain = json.loads(json_bytes(value))
    write_json(path, plain | {"sha256": sha256_json(plain)})


def is_intact(value: dict) -> bool:
    """Whether an object that `write_sealed` wrote is as it was; one without a hash, of an older program, counts too."""
    plain = {key: entry for key, entry in value.items() if key != "sha256"}
    return value.get("sha256") in (None, sha256_json(plain))


def json_bytes(value: Any) -> bytes:
    """The content of a JSON file of ours. NaN and infinity are refused."""
    return (json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def write_blocks(path: str | Path, blocks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a new file from blocks of bytes and flush it to disk; -> its size and SHA-256, taken on the way.

    Not atomic: for files of a folder that is still temporary. Raises OSError.
    """
    size, digest = 0, hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for block in blocks:
            digest.update(block)
            write_all(file, block)
            size += len(block)
        os.fsync(file.fileno())
        os.chmod(path, 0o644)
    return size, digest.hexdigest()


def write_all(file: io.RawIOBase, data: bytes | memoryview) -> None:
    """Write all of `data` to an unbuffered file, which takes less at a time when a disk gets full. Raises OSError."""
    left = memoryview(data)
    while len(left):
        left = left[file.write(left) :]


PACKED = {
    b"PAR1": "is a Parquet file; write it as JSON lines (pandas: read_parquet, to_json)",
    b"ARROW1": "is an Arrow file; write it as JSON lines (datasets: to_json)",
    b"\x1f\x8b": "is compressed (gzip); unpack it first (gunzip)",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd); unpack it first (zstd -d)",
    b"BZh": "is compressed (bzip2); unpack it first (bunzip2)",
    b"\xfd7zXZ": "is compressed (xz); unpack it first (unxz)",
    b"PK\x03\x04": "is a zip archive; unpack it first (unzip)",
}  # what a file that is no text begins with


@contextmanager
def open_lines(path: str | Path) -> Iterator[BinaryIO]:
    """The file, open at its start for JSON lines. Raises UserError that names `path` for what can hold none."""
    with reading(path), open(path, "rb") as file:
        start = file.read(8)
        if fault := next((fault for magic, fault in PACKED.items() if start.startswith(magic)), None):
            raise UserError(f"{path}: {fault}")
        file.seek(0)
        yield file


class _KeyTwice(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _KeyTwice(f"the key {twice!r} stands twice in the object with {', '.join(found)}"[:200])
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse_json(text: str, path: str | Path, line: int | None = None) -> Any:
    """The value of `text`, which came from `path` (its line `line`; None: the whole file).

    Raises UserError that names file and line for anything that is not JSON, a key given twice in one object, a number
    too long to be read, or a value nested too deeply for Python's parser.
    """
    where = f"{path}" if line is None else f"{path}:{line}"
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{line or error.lineno}"
        raise UserError(f"{place}: not valid JSON ({error.msg} at column {error.colno})") from error
    except _KeyTwice as error:
        raise UserError(f"{where}: {error}; remove one") from error
    except (ValueError, RecursionError) as error:  # Python limits the digits of an integer
        fault = "an integer has too many digits" if isinstance(error, ValueError) else "a value is nested too deeply"
        raise UserError(f"{where}: not usable JSON: {fault}; mend the file") from error


def parse_object(line: bytes, path: str | Path, number: int | None) -> dict:
    """The JSON object of one line of `path`. Raises UserError that names file and line when it is none.

    number: the line's, from 1; the first may begin with a byte order mark.
    """
    try:
        value = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"), path, number)
    except UnicodeDecodeError as error:
        fault = f"{error.reason} at byte {error.start} of the line"
        raise UserError(f"{path}:{number}: not UTF-8 text ({fault})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}:{number}: expected one JSON object a line, found {type(value).__name__}")
    return value


def read_json(path: str | Path) -> Any:
    """Read one JSON file (UTF-8, with or without a byte order mark). Raises UserError that names the file."""
    with reading(path):
        text = Path(path).read_text(encoding="utf-8-sig")
    return parse_json(text, path)


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, object) for each non-blank line of UTF-8, with or without a byte order mark.

    Raises UserError that names file and line when a line is not one JSON object, or the file holds none.
    """
    number = None
    for number, _, value in scan_jsonl(path):
        if isinstance(value, UserError):
            raise value
        yield number, value
    if number is None:
        raise UserError(f"{path}: the file holds no record")


def scan_jsonl(path: str | Path) -> Iterator[tuple[int, int, dict | UserError]]:
    """Yield (line number from 1, offset in bytes, object) for each non-blank line, and go on after a bad one.

    In place of a line that is not one JSON object comes the UserError of `parse_object`. Raises UserError when the file
    itself cannot be read. `read_line` gives the object at an offset again.
    """
    offset = 0
    with open_lines(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    value: dict | UserError = parse_object(line, path, number)
                except UserError as error:
                    value = error
                yield number, offset, value
            offset += len(line)


def read_line(path: str | Path, offset: int) -> dict:
    """The object of the line that begins at `offset`, as `scan_jsonl` gave it. Raises UserError when it is none."""
    with open(path, "rb") as file:
        file.seek(offset)
        return parse_object(file.readline(), path, None if offset else 1)


def write_jsonl(path: str | Path, values) -> int:
    """Write an iterable of objects as JSON lines, atomically; return how many were written."""
    count = 0

    def write(temporary: Path) -> None:
        nonlocal count
        with open(temporary, "w", encoding="utf-8") as file:
            for value in values:
                file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
                count += 1

    atomic_write(path, write)
    return count


def jsonable(value: Any) -> Any:
    """`value` with NumPy numbers made plain and numbers that are not finite None, since JSON has neither."""
    if isinstance(value, dict):
        return {key: jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(entry) for entry in value]
    if hasattr(value, "item"):  # a NumPy number
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content, read in blocks. Raises UserError when it cannot be read."""
    digest = hashlib.sha256()
    with reading(path), open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of the canonical JSON form of `value` (sorted keys, no spaces): the same for equal values."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def inside(folder: str | Path, name: str) -> Path:
    """Return `folder/name`, refusing a name that is absolute, climbs out with '..' or follows a link outside.

    For every path that was read from a manifest or an archive. Raises UserError.
    """
    folder = Path(folder)
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: the entry {name!r} points outside this folder; the file is damaged or hostile")
    return path
