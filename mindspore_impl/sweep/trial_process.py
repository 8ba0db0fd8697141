"""One trial as a process group of its own: started, watched, and ended with all its children."""

import functools
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from mindspore_impl import ranks

LOG = "log.txt"
_PACKAGE = Path(__file__).resolve().parents[1]
_CODE = f"import sys; from {_PACKAGE.name}.cli import train; sys.exit(train())"


def command_of(folder: Path) -> list[str]:
    """What runs the trial whose run directory is `folder`, as its config.yaml says."""
    return [sys.executable, "-c", _CODE, "--resume", str(folder)]


class TrialProcess:
    """A running trial; its output goes to <folder>/log.txt."""

    def __init__(self, folder: Path):
        paths = [str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        self.folder, self.started = folder, time.monotonic()
        self.output = open(folder / LOG, "wb")  # noqa: SIM115 (closed when the process has ended)
        try:
            self.process = subprocess.Popen(
                command_of(folder), stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True,
                preexec_fn=functools.partial(ranks.die_with_parent, signal.SIGTERM),
            )  # fmt: skip
        except BaseException:
            self.output.close()
            raise

    @property
    def ended(self) -> bool:
        """Whether its first process has ended; what that left behind is then killed."""
        if self.process.poll() is None:
            return False
        self._signal(signal.SIGKILL)
        self.output.close()
        return True

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    def ask_to_stop(self) -> None:
        """SIGTERM to the whole group."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole group; returns when its first process is gone."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.output.close()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def fault(self) -> str | None:
        """Why it failed, in the words of its log; None when it ended well."""
        code = self.process.returncode
        if code == 0:
            return None
        lines = (self.folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((i for i in reversed(range(len(lines))) if lines[i].startswith("error: ")), None)
        if last is not None:
            return "\n".join(lines[last:]).removeprefix("error: ").strip()
        word = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        said = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return f"{word}: {said}"


def stop_all(running: list[TrialProcess], patience: float) -> None:
    """End every trial: ask first, kill after `patience` seconds or at a second Ctrl-C."""
    for trial in running:
        trial.ask_to_stop()
    until = time.monotonic() + patience
    try:
        while time.monotonic() < until and not all([trial.ended for trial in running]):
            time.sleep(0.1)
    finally:
        for trial in running:
            trial.kill()
