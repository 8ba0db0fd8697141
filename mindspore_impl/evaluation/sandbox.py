"""Run Python programs that nobody has read, and say whether they pass their tests.

The program and its tests run in two processes, each inside the layers of isolation that this machine has
(`enclosed/layers.py`): the tests call into the program, and the verdict comes from their side. A result names the
layers that were around it; where the machine cannot keep a promise (`isolation().missing`), nothing runs unless
`require_isolation` is false.
"""

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
from mindspore_impl.evaluation.enclosed import layers

_SUPERVISOR = Path(layers.__file__).with_name("supervisor.py")
_GRACE_SECONDS = 2 * layers.SETUP_SECONDS + 15  # for starting and clearing up on a busy machine
_MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one program may use. A program of several processes has memory, CPU time and files for each of them."""

    seconds: float = 10.0  # wall clock, from the moment that it is loaded
    cpu_seconds: int = 10
    memory_mb: int = 512  # address space
    disk_mb: int = 16  # the private folder, where it is in memory ("own root")
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
    """What became of one program. `passed` means that its tests ran to their end (with no tests: that it did)."""

    status: Literal["passed", "failed", "timeout", "memory", "output", "killed", "refused"]
    error: str = ""  # one line: the exception and the line of the tests, or the limit
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    isolation: tuple[str, ...] = ()  # the layers that were around it


@dataclass(frozen=True)
class Program:
    """A program, its tests, and the names of the program that the tests use."""

    source: str
    checks: str = ""
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Isolation:
    """What this machine offers: `layers` in use, `reasons` of those that do not work, `missing` promises."""

    layers: tuple[str, ...]
    reasons: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@functools.cache
def isolation() -> Isolation:
    """Try every layer of `layers.LAYERS` once, in a process that is thrown away."""
    found = _supervise({"do": "probe"}, _GRACE_SECONDS)
    if "status" in found:
        found = {name: found["error"] for name in layers.LAYERS}
    working = tuple(name for name, reason in found.items() if not reason)
    reasons = {name: reason for name, reason in found.items() if reason}
    return Isolation(working, reasons, tuple(layers.missing_promises(list(working))))


def run_program(
    source: str,
    limits: Limits = Limits(),
    checks: str = "",
    names: Sequence[str] = (),
    around: Isolation | None = None,
) -> Result:
    """Run `source`, then `checks` against it; both are Python with its standard library.

    checks: tests that raise when the program is wrong. They run in another process, where `names` stand for what the
        program defines. Plain values travel as copies (numbers, text, bytes, None, list, tuple, dict, set, range,
        Fraction, Decimal; changes of an argument in place travel back); other objects of the program can be called,
        read and walked through, and equal nothing but themselves. Without checks the program is `__main__`.
    around: the layers to use (default: all that work here).
    Never raises for what the program does.
    """
    around = around or isolation()
    if limits.require_isolation and around.missing:
        return Result("refused", refusal(around))
    job = {"do": "run", "program": source, "checks": checks, "names": list(names), "layers": list(around.layers)}
    sizes = {"memory": limits.memory_mb * _MIB, "disk": limits.disk_mb * _MIB, "file": limits.file_mb * _MIB}
    job["limits"] = vars(limits) | sizes | {"output": limits.output_kb << 10}
    return Result(**_supervise(job, limits.seconds + _GRACE_SECONDS), isolation=around.layers)


def check_isolation(limits: Limits) -> Isolation:
    """The layers of this machine. Raises UserError where they do not keep the promises that `limits` asks for."""
    around = isolation()
    if limits.require_isolation and around.missing:
        raise UserError(refusal(around))
    return around


def refusal(around: Isolation) -> str:
    """Why no program is run inside of `around`, and what can be done about it."""
    useful = {name for promise in around.missing for way in layers.PROMISES[promise] for name in way}
    reasons = "; ".join(f"{name}: {reason}" for name, reason in around.reasons.items() if name in useful)
    return (
        f"this machine cannot isolate programs: {', '.join(around.missing)} not protected ({reasons}); run as root, "
        "allow user namespaces or use Linux 6.12 with Landlock; to run them all the same pass --code-unisolated "
        "(tools/evaluate.py) or require_isolation=false (Limits)"
    )


def run_many(
    programs: Iterable[Program], limits: Limits = Limits(), workers: int | None = None, title: str = "programs"
) -> list[Result]:
    """`run_program` for each, `workers` at a time (default: one a core), in order.

    Raises UserError where programs cannot be isolated and must be.
    """
    programs, around = list(programs), check_isolation(limits)
    results: list[Result | None] = [None] * len(programs)

    def run(index: int) -> None:
        program = programs[index]
        results[index] = run_program(program.source, limits, program.checks, program.names, around)

    pool = ThreadPoolExecutor(max(1, workers or len(os.sched_getaffinity(0))))
    with runtime.progress_bar(len(programs), title, "program") as bar:
        try:
            for _ in pool.map(run, range(len(programs))):
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    return results


def _supervise(job: dict, seconds: float) -> dict:
    """Have the supervisor do `job`; -> its result, or one that says why there is none."""
    data = json.dumps(job | {"folder": tempfile.gettempdir()}).encode()
    command = [os.path.realpath(sys.executable), "-I", "-S", "-B", str(_SUPERVISOR)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env={}, cwd="/", start_new_session=True, **pipes) as process:
        try:
            answer, said = process.communicate(struct.pack("<I", len(data)) + data, timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"status": "killed", "error": f"the supervisor gave no answer in {seconds:g} s"}
        finally:
            process.kill()
    if len(answer) < 4:
        lines = said.decode(errors="replace").strip().splitlines()
        return {"status": "killed", "error": f"the supervisor ended: {lines[-1] if lines else process.returncode}"}
    return json.loads(answer[4:])
