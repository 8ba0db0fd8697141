"""A trial as a process group of its own: start it, watch it, and end it with all its children."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mindspore_impl.distributed import processes

LOG = "log.txt"


def command_of(folder: Path, plugins: Sequence[str] = ()) -> list[str]:
    """The command of the trial in the run directory `folder`, as its config.yaml says."""
    return processes.train_command("--resume", str(folder), *(["--plugins", *plugins] if plugins else []))


class TrialProcess:
    """A running trial; its output goes to <folder>/log.txt."""

    def __init__(self, folder: Path, plugins: Sequence[str] = ()):
        self.folder, self.started = folder, time.monotonic()
        with open(folder / LOG, "wb") as output:
            self.process = processes.start(command_of(folder, plugins), signal.SIGTERM, output, PYTHONUNBUFFERED="1")

    @property
    def ended(self) -> bool:
        """Whether its first process has ended; what that left behind is then killed."""
        if self.process.poll() is None:
            return False
        self.signal(signal.SIGKILL)
        return True

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the start."""
        return time.monotonic() - self.started

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def fault(self) -> str | None:
        """The error message from its log; None when it succeeded."""
        code = self.process.returncode
        if code == 0:
            return None
        lines = (self.folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        _, error, said = ("\n" + "\n".join(lines)).rpartition("\nerror: ")
        if error:
            return said.strip()
        word = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        said = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return f"{word}: {said}"


def stop_all(running: list[TrialProcess], patience: float) -> None:
    """End every trial: SIGTERM first, SIGKILL after `patience` seconds or at a second Ctrl-C."""
    for trial in running:
        trial.signal(signal.SIGTERM)
    until = time.monotonic() + patience
    try:
        while time.monotonic() < until and not all([trial.ended for trial in running]):
            time.sleep(0.1)
    finally:
        for trial in running:
            trial.signal(signal.SIGKILL)
            trial.process.wait()
