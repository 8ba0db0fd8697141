"""Run one job at a time in a background thread; its error is raised at the next training step."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs jobs one after the other in a thread, or (`active` False) synchronously; at most one at a time.

    As a context manager it waits for the last job at the end; a job's error is raised there, or written to stderr if
    another error is raised.
    """

    def __init__(self, active: bool = True):
        self._threads = ThreadPoolExecutor(1, "checkpoint") if active else None
        self._job: Future | None = None

    def submit(self, job: Callable[[], object]) -> None:
        """Start `job` after the previous one. Raises the error of the previous one, or without a thread of this one."""
        if self._threads is None:
            job()
            return
        self.wait()
        self._job = self._threads.submit(job)

    def check(self) -> None:
        """Raise the error of a job that has failed; return at once while it runs."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> float:
        """Wait for the running job; -> seconds waited. Raises its error."""
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
