"""Compile an Ascend C kernel with g++ against the emulated headers and run it on NumPy arrays, with counters.

    library = emulate.build(kernel_cpp, include_dirs=[...], defines={"DTYPE_LOGITS": "bfloat16_t"})
    counters = emulate.run(library, "topk_distill_loss", [("logits", logits_NV), ..., ("tiling", data)], cores=2)

Standard library and NumPy only. What is emulated, and what is not proven by it: README.md beside this file.
"""

import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
UB_BYTES = 192 * 1024  # of ascend910b and ascend910_93
FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-fno-strict-aliasing", "-fno-gnu-unique", "-Wall", "-Wextra"]
FLAGS += ["-Wno-unused-parameter", f"-I{HERE / 'include'}"]
RUNTIME = ("core.cpp", "runtime.cpp")
TRACE_ROOM = 32


class EmulatorError(Exception):
    """A rule was broken, or the kernel does not compile: `rule: core N: what (file:line)`, one line.

    `details` holds all that the compiler said.
    """

    details = ""

    @property
    def rule(self) -> str:
        """The name of the rule: the text before the first colon."""
        return str(self).partition(":")[0]


def build(source: str | Path, include_dirs=(), defines: dict[str, str] | None = None, cache=None) -> Path:
    """Compile one kernel file into a shared library and return its path; equal sources are compiled once.

    `include_dirs` are searched for the kernel's own headers; every file in them is part of the cache key. `cache` is
    the directory of the libraries (default: EMULATOR_CACHE, or ~/.cache/ascendc-emulator).
    Raises EmulatorError with the compiler's first error.
    """
    source = Path(source).resolve()
    include_dirs = [Path(directory).resolve() for directory in (source.parent, *include_dirs)]
    command = [*FLAGS, *(f"-I{directory}" for directory in include_dirs)]
    command += [f"-D{name}={value}" for name, value in sorted((defines or {}).items())]
    cache = Path(cache or os.environ.get("EMULATOR_CACHE") or Path.home() / ".cache" / "ascendc-emulator")
    cache.mkdir(parents=True, exist_ok=True)
    objects = [str(_compiled(FLAGS, HERE / name, [HERE], cache, ".o", ["-c"])) for name in RUNTIME]
    link = ["-shared", "-Wl,-Bsymbolic", *objects, "-ldl"]
    return _compiled(command, source, [HERE, *include_dirs], cache, ".so", link)


def _compiled(command, source, watched, cache, suffix, extra):
    """The product of one compiler call, from the cache where all sources and the command are unchanged."""
    compiler = os.environ.get("CXX") or "g++"
    digest = hashlib.sha256("\0".join([compiler, platform.machine(), *command, *extra, str(source)]).encode())
    files = {path for directory in watched for path in directory.rglob("*") if path.suffix in {".h", ".hpp", ".cpp"}}
    for path in sorted(files | {source}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    product = cache / f"{source.stem}-{digest.hexdigest()[:24]}{suffix}"
    if product.exists():
        return product
    if not shutil.which(compiler):
        raise EmulatorError(f"compile: {compiler} is not installed; the emulator needs a C++17 compiler")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        target = Path(folder) / product.name
        # Link order: what the kernel needs follows it.
        call = [compiler, *command, str(source), *extra, "-o", str(target)]
        result = subprocess.run(call, capture_output=True, text=True)
        if result.returncode:
            errors = [line for line in result.stderr.splitlines() if "error:" in line] or [result.stderr.strip()]
            error = EmulatorError("compile: " + errors[0])
            error.details = result.stderr
            raise error
        os.replace(target, product)
    return product


class _Buffer(ctypes.Structure):
    """BufferArgument of runtime.cpp."""

    _fields_ = [
        ("name", ctypes.c_char_p), ("base", ctypes.c_void_p), ("bytes", ctypes.c_uint64), ("grain", ctypes.c_uint32),
    ]  # fmt: skip


def run(library: str | Path, kernel: str, arguments: list[tuple[str, np.ndarray | bytes | None]], cores: int = 1):
    """Run the kernel named `kernel` of a built library on `cores` vector cores; arrays are read and written in place.

    arguments: the kernel's parameters in order: a name for the counters, and an array (contiguous; its item size is the
    grain of the race checks; the same one again is the same tensor), bytes (tiling) or None (null pointer).
    Returns `{"total": {...}, "cores": [{...}, ...]}`, each with gm (by name: read_bytes, written_bytes, read_copies,
    write_copies), repeats and calls (by instruction), scalar, sync and ub_high_water. Raises EmulatorError.
    """
    code = ctypes.CDLL(str(library))
    entry = getattr(code, kernel, None)
    if entry is None:
        raise EmulatorError(f'compile: the kernel {kernel!r} is not in the library, or not extern "C"')
    tensors: dict[int, tuple[str, np.ndarray]] = {}  # by address: one tensor may serve two parameters
    pointers = []
    for name, value in arguments:
        array = np.frombuffer(bytearray(value), np.uint8) if isinstance(value, bytes | bytearray) else value
        pointers.append(None if array is None else array.ctypes.data)
        if array is None:
            continue
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise ValueError(f"{name}: the array must be C-contiguous and writeable")
        tensors.setdefault(array.ctypes.data, (name, array))
    buffers = [(name.encode(), array.ctypes.data, array.nbytes, array.itemsize) for name, array in tensors.values()]
    code.emulator_report.restype = ctypes.c_char_p
    failed = code.emulator_run(
        ctypes.cast(entry, ctypes.c_void_p), len(pointers), (ctypes.c_void_p * len(pointers))(*pointers), cores,
        ctypes.c_uint32(UB_BYTES), len(buffers), (_Buffer * len(buffers))(*buffers),
    )  # fmt: skip
    report = code.emulator_report().decode()
    if failed:
        raise EmulatorError(report + _where(code, library))
    by_core = json.loads(report)
    return {"total": _total(by_core), "cores": by_core}


def _where(code, library) -> str:
    """The kernel's own lines that led to a fault, innermost first: ` (file:line <- file:line)`, where addr2line is."""
    addresses = (ctypes.c_uint64 * TRACE_ROOM)()
    found = code.emulator_trace(addresses, TRACE_ROOM)
    if not found or not shutil.which("addr2line"):
        return ""
    call = ["addr2line", "-i", "-e", str(library), *(hex(address) for address in addresses[:found])]
    lines = subprocess.run(call, capture_output=True, text=True).stdout.splitlines()
    known = (line.split(" (")[0] for line in lines if line.startswith("/") and ":?" not in line)
    ours = (line for line in known if not line.startswith((str(HERE), "/usr/")))
    places = list(dict.fromkeys(line.rpartition("/")[2] for line in ours))
    return f" ({' <- '.join(places[:4])})" if places else ""


def _total(by_core: list[dict]) -> dict:
    """The sum over cores, keys in alphabetical order; of the high-water mark, the maximum."""
    total = {group: _sums(core[group] for core in by_core) for group in ("repeats", "calls", "scalar", "sync")}
    names = sorted({name for core in by_core for name in core["gm"]})
    total["gm"] = {name: _sums(core["gm"].get(name, {}) for core in by_core) for name in names}
    total["ub_high_water"] = max(core["ub_high_water"] for core in by_core)
    return total


def _sums(counts) -> dict[str, int]:
    total = Counter()
    for core in counts:
        total.update(core)
    return dict(sorted(total.items()))
