"""Start sandboxed programs; nothing runs where a promise cannot be kept, unless `require_isolation` is false."""

import functools
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mindspore_impl import runtime
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.sandbox.layers import LAYERS, PROMISES, SETUP_SECONDS, missing_promises

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_GRACE_SECONDS = 2 * SETUP_SECONDS + 15  # startup and cleanup on a busy machine


@dataclass(frozen=True)
class Limits:
    """Resource limits of one program. Memory, CPU time and files are limited for each of its processes."""

    seconds: float = 10.0  # wall clock, counted from loading
    cpu_seconds: int = 10
    memory_mb: int = 512  # address space
    disk_mb: int = 16  # private folder, where it is in memory (layer "own root")
    file_mb: int = 8
    open_files: int = 64
    processes: int = 8  # and threads
    output_kb: int = 64  # of stdout, and of stderr
    require_isolation: bool = True  # refuse to run where a promise cannot be kept

    def __post_init__(self):
        for name, value in vars(self).items():
            if name != "require_isolation" and not value > 0:
                raise UserError(f"limits: {name}={value} must be more than 0")


@dataclass(frozen=True)
class Result:
    """Outcome of one program. `passed`: its tests ran to the end; without tests, the program did."""

    status: Literal["passed", "failed", "timeout", "memory", "output", "killed", "refused"]
    error: str = ""  # one line: the exception and the line of the tests, or the limit
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    isolation: tuple[str, ...] = ()  # layers in use


@dataclass(frozen=True)
class Program:
    """A program and its tests; both are Python with its standard library.

    source: runs as `__main__` when there are no checks. checks: tests, which raise when the program is wrong. They run
    in another process: plain values are copied (numbers, text, bytes, None, list, tuple, dict, set, range, Fraction,
    Decimal), and in-place changes of an argument are copied back; other objects of the program can be called, read and
    iterated, and compare equal to nothing but themselves. names: what the tests take from the program.
    """

    source: str
    checks: str = ""
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Isolation:
    """Available isolation: the working `layers`, `reasons` why others do not work, `missing` promises."""

    layers: tuple[str, ...]
    reasons: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@functools.cache
def isolation() -> Isolation:
    """Probe every layer once, in a throwaway process."""
    found = _supervise({"do": "probe"}, _GRACE_SECONDS)
    if "status" in found:
        found = dict.fromkeys(LAYERS, found["error"])
    reasons = {name: reason for name, reason in found.items() if reason}
    working = tuple(name for name in found if name not in reasons)
    return Isolation(working, reasons, tuple(missing_promises(working)))


def run_program(program: Program, limits: Limits = Limits(), around: Isolation | None = None) -> Result:
    """Run `program` inside the layers `around` (default: all that work here). Nothing that it does raises."""
    around = around or isolation()
    if limits.require_isolation and around.missing:
        return Result("refused", _refusal(around))
    sizes = {key: getattr(limits, f"{key}_mb") * 2**20 for key in ("memory", "disk", "file")}
    job = {"do": "run", **vars(program), "names": list(program.names), "layers": list(around.layers)}
    job["limits"] = vars(limits) | sizes | {"output": limits.output_kb << 10}
    return Result(**_supervise(job, limits.seconds + _GRACE_SECONDS), isolation=around.layers)


def check_isolation(limits: Limits) -> Isolation:
    """Return this machine's isolation. Raises UserError where it does not keep the promises that `limits` requires."""
    around = isolation()
    if limits.require_isolation and around.missing:
        raise UserError(_refusal(around))
    return around


def _refusal(around: Isolation) -> str:
    useful = {name for promise in around.missing for way in PROMISES[promise] for name in way}
    reasons = "; ".join(f"{name}: {reason}" for name, reason in around.reasons.items() if name in useful)
    remedy = "run as root, allow user namespaces, use Linux 6.12 with Landlock, or pass --code-unisolated"
    return f"this machine cannot isolate programs: {', '.join(around.missing)} not protected ({reasons}); {remedy}"


def run_many(programs: Iterable[Program], limits: Limits = Limits()) -> list[Result]:
    """`run_program` for each in order, one per core at a time. Raises UserError without isolation."""
    programs, results = list(programs), []
    run = functools.partial(run_program, limits=limits, around=check_isolation(limits))
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    with runtime.progress_bar(len(programs), "programs", "program") as bar:
        try:
            for result in pool.map(run, programs):
                results.append(result)
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    return results


def _supervise(job: dict, seconds: float) -> dict:
    """Run a supervisor process for `job`; return its result, or one that says why there is none."""
    data = json.dumps(job | {"folder": tempfile.gettempdir()}).encode()
    command = [os.path.realpath(sys.executable), "-I", "-S", "-B", str(_SUPERVISOR)]
    settings = {"env": {}, "cwd": "/", "start_new_session": True, "capture_output": True}
    try:
        done = subprocess.run(command, input=struct.pack("<I", len(data)) + data, timeout=seconds, **settings)
    except subprocess.TimeoutExpired:
        return {"status": "killed", "error": f"the supervisor gave no answer in {seconds:g} s"}
    if len(done.stdout) < 4:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [done.returncode]
        return {"status": "killed", "error": f"the supervisor ended: {lines[-1]}"}
    return json.loads(done.stdout[4:])
