"""Profile a few training steps: MindSpore's trace, and a table of step times measured on the host."""

import sys
from pathlib import Path

from mindspore_impl import files


class StepProfiler:
    """Profiles `steps` steps, beginning with the second one of this process (the first one compiles), into `folder`.

    <folder>/step_times.json holds milliseconds a step on the host, data included; <folder>/*_ascend_ms/ MindSpore's
    trace (trace_view.json opens in Perfetto), whose failure is a warning.
    """

    def __init__(self, folder: Path, steps: int):
        self.folder, self.steps = folder, steps
        self.seen, self.times, self.profiler = 0, [], None

    def step_done(self, seconds: float) -> None:
        """Call after every step with its duration."""
        if self.steps <= 0 or self.seen > self.steps:
            return
        if self.seen == 0:
            self.profiler = _guarded(self._start)
        else:
            self.times.append(round(seconds * 1e3, 3))
            if self.profiler is not None:
                self.profiler.step()
        self.seen += 1
        if self.seen > self.steps:
            self.close()

    def close(self) -> None:
        """Stop and write the results, also when a run ends early."""
        profiler, self.profiler = self.profiler, None
        if profiler is not None:
            _guarded(profiler.stop)
        if self.times:
            files.write_json(self.folder / "step_times.json", {"milliseconds": self.times})
            self.times = []
        self.steps = 0

    def _start(self):
        from mindspore import profiler

        self.folder.mkdir(parents=True, exist_ok=True)
        started = profiler.profile(on_trace_ready=profiler.tensorboard_trace_handler(str(self.folder)))
        started.start()
        return started


def _guarded(call):
    try:
        return call()
    except Exception as error:  # a profiler must never end a training run
        print(f"warning: mindspore.profiler failed ({error}); only step_times.json is written", file=sys.stderr)
        return None
