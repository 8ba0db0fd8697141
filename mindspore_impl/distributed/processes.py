"""Processes of this machine: start our own program again, and observe other processes."""

import contextlib
import ctypes
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil

PACKAGE = Path(__file__).resolve().parents[1]
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_TRAIN = f"import sys; from {PACKAGE.name}.cli.train import main; sys.exit(main())"


def train_command(*arguments: str, python: str = sys.executable) -> list[str]:
    """The command line of tools/train.py with these arguments, also where the package is installed without tools/."""
    return [python, "-c", _TRAIN, *arguments]


def environment(**more: str) -> dict[str, str]:
    """This process's environment with this Python first in PATH, this package first in PYTHONPATH, and `more`."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    modules = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PATH": search, "PYTHONPATH": modules} | more


def start(command: list[str], parent_death_signal: int, output, **more: str) -> subprocess.Popen:
    """Start `command` in a new session, with `environment(**more)` and its output in the open file `output`.

    The kernel sends it `parent_death_signal` when this process ends.
    """
    die = functools.partial(die_with_parent, parent_death_signal)
    streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=environment(**more), start_new_session=True, preexec_fn=die, **streams)


def die_with_parent(number: int) -> None:
    """Have the kernel send this process the signal `number` when the process that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, number, 0, 0, 0)


def is_alive(process: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def has_failed(process: int) -> bool:
    """Whether a process has ended with a wait status other than 0 and is still a zombie; psutil does not know it."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] == "Z" and int(fields[49]) != 0


def python_children(parent: int) -> list[int]:
    """The children of a process that run Python."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(parent).children():
            with contextlib.suppress(psutil.Error):
                found += [child.pid] if "python" in child.name() else []
    return found


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_in_use(port: int) -> bool:
    """Whether something listens on this port of this machine."""
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))
        return False
    return True
