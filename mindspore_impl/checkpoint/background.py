"""Work that goes on beside the training steps: one job at a time, whose fault is told at the next step."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs jobs one after the other, in a thread of its own, or (`active` False) at once.

    At most one job is under way: a second one waits, since its data would need as much memory again and skipping it
    would lose what was asked for. As a context manager it waits for the last job at the end; a job's error is raised
    there, or written to stderr where another error is on its way.
    """

    def __init__(self, active: bool = True):
        self._threads = ThreadPoolExecutor(1, "checkpoint") if active else None
        self._job: Future | None = None

    def submit(self, job: Callable[[], object]) -> None:
        """Start `job` once the earlier one has ended. Raises that one's error, or without a thread this one's."""
        if self._threads is None:
            job()
            return
        self.wait()
        self._job = self._threads.submit(job)

    def check(self) -> None:
        """Raise the error of a job that has ended with one; return at once while it is under way."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> float:
        """Return the seconds until the job under way had ended. Raises its error."""
        start, job = time.perf_counter(), self._job
        if job is not None:
            self._job = None
            job.result()
        return time.perf_counter() - start

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            print(f"warning: {failure}", file=sys.stderr)
        finally:
            if self._threads is not None:
                self._threads.shutdown()
