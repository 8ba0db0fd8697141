"""Processes of this machine: starting our own program again, and telling how others are. Linux, where it matters."""

import ctypes
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_TRAIN = f"import sys; from {PACKAGE.name} import cli; sys.exit(cli.train())"


def train_command(*arguments: str, python: str = sys.executable) -> list[str]:
    """What tools/train.py does with these arguments, also where the package is installed without tools/."""
    return [python, "-c", _TRAIN, *arguments]


def environment(**more: str) -> dict[str, str]:
    """This process's environment, in which "python" is this Python and this very package is the one imported."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    modules = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PATH": search, "PYTHONPATH": modules} | more


def start(command: list[str], at_our_end: int, output, **more: str) -> subprocess.Popen:
    """Start `command` in a session of its own, with `environment(**more)` and its output in the open file `output`.

    The kernel sends it the signal `at_our_end` when this process ends.
    """
    return subprocess.Popen(
        command,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=functools.partial(die_with_parent, at_our_end),
    )


def die_with_parent(number: int) -> None:
    """Have the kernel send this process the signal `number` when the process that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, number, 0, 0, 0)


def lives(process: int) -> bool:
    """Whether a process exists and is no zombie."""
    return state_of(process)[0] not in "ZX"


def state_of(process: int) -> tuple[str, int]:
    """State letter of proc(5), "X" when it is gone, and the wait status of one that has ended."""
    fields = _stat(process)
    return (fields[0], int(fields[49])) if fields else ("X", 0)


def parent_of(process: int) -> int:
    """The process that started it; 0 when it is gone."""
    fields = _stat(process)
    return int(fields[1]) if fields else 0


def _stat(process: int) -> list[str]:
    """The fields of /proc/<process>/stat from its state on."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def python_children(parent: int) -> list[int]:
    """The children of a process that run Python."""
    try:
        with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
            return [int(number) for number in file.read().split() if "python" in _name(int(number))]
    except OSError:
        return []


def _name(process: int) -> str:
    try:
        with open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_in_use(port: int) -> bool:
    """Whether something listens on this port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False
