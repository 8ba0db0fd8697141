"""Training progress, metrics.jsonl and TensorBoard events. A checkpoint stores `Progress`, which is plain JSON."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.training.step import StepReport

FLUSH_SECONDS = 30  # longest delay between an event and its flush to disk


@dataclass
class Window:
    """Sums since the last line of metrics.jsonl; steps that were skipped add only their time."""

    steps: int = 0
    loss: float = 0.0  # sum over steps of loss x supervised tokens
    grad_norm: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)  # sums over supervised positions
    supervised_tokens: int = 0
    tokens: int = 0
    timed_tokens: int = 0
    seconds: float = 0.0


@dataclass
class Progress:
    """The state of a run after `step` steps. Counts are of all ranks, times of rank 0, `seconds` less compilation."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    timed_tokens: int = 0  # tokens of the steps that `seconds` covers
    seconds: float = 0.0
    compile_seconds: float = 0.0
    checkpoint_copy_seconds: float = 0.0  # training blocked: copying the state of a checkpoint
    checkpoint_wait_seconds: float = 0.0  # training blocked: waiting until the previous checkpoint is written
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    last_finite_step: int = 0
    window: Window = field(default_factory=Window)
    line: dict[str, Any] = field(default_factory=dict)  # the last line of metrics.jsonl
    validation_before: dict[str, Any] = field(default_factory=dict)
    validation_last: dict[str, Any] = field(default_factory=dict)
    validation_best: dict[str, Any] = field(default_factory=dict)
    last_metric: float | None = None  # loss over the tokens of all validation sets; None when not finite
    best_step: int | None = None
    best_metric: float | None = None

    @classmethod
    def from_position(cls, position: dict, where: str) -> "Progress":
        """The progress that a checkpoint stores. Raises UserError that names `where` when it holds none."""
        try:
            values = dict(position["progress"])
            return cls(**values | {"window": Window(**values["window"])})
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: not of this program version ({error}); choose another run_dir") from error

    def position(self) -> dict:
        """For `checkpoint.save`."""
        return {"progress": asdict(self)}

    def add(self, report: StepReport, names: tuple[str, ...], tokens: int, seconds: float, compiled: bool) -> None:
        """Count one step.

        Args:
            report: what the step returned.
            names: of `report.metrics`, the last being "tokens".
            tokens: packed tokens of the step.
            seconds: its time.
            compiled: whether that was compilation.
        """
        self.step += 1
        self.tokens += tokens
        self.window.tokens += tokens
        if compiled:
            self.compile_seconds += seconds
        else:
            for totals in (self, self.window):
                totals.seconds += seconds
                totals.timed_tokens += tokens
        if not report.finite:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            return
        self.skipped_in_a_row, self.last_finite_step = 0, self.step
        sums = dict(zip(names, report.metrics.tolist(), strict=True))
        supervised = round(sums.pop("tokens"))
        self.supervised_tokens += supervised
        self.window.steps += 1
        self.window.supervised_tokens += supervised
        self.window.loss += report.loss * supervised
        self.window.grad_norm += report.gradient_norm
        for name, value in sums.items():
            self.window.metrics[name] = self.window.metrics.get(name, 0.0) + value

    def take_line(self, names: Iterable[str], learning_rate: float, epoch: float | None) -> dict[str, Any]:
        """Close the window: one line of metrics.jsonl with means over supervised tokens, for the metrics `names`."""
        window, self.window = self.window, Window()
        line: dict[str, Any] = {"step": self.step}
        if epoch is not None:
            line["epoch"] = round(epoch, 4)
        if window.steps:
            count = max(window.supervised_tokens, 1)
            line["loss"] = window.loss / count
            line |= {name: window.metrics[name] / count for name in names}
            line["grad_norm"] = window.grad_norm / window.steps
        line |= {
            "supervised_tokens": window.supervised_tokens,
            "tokens": window.tokens,
            "learning_rate": learning_rate,
            "tokens_per_second": window.timed_tokens / window.seconds if window.seconds else None,
            "skipped": self.skipped_steps,
        }
        self.line = files.jsonable(line)
        return self.line

    def note_validation(self, measured: dict[str, dict]) -> None:
        """Record {set: {loss, perplexity, tokens}} of this step, and update the best step."""
        self.validation_last, self.last_metric = measured, None
        if all(entry["loss"] is not None for entry in measured.values()):
            tokens = sum(entry["tokens"] for entry in measured.values())
            self.last_metric = sum(entry["loss"] * entry["tokens"] for entry in measured.values()) / max(tokens, 1)
            if self.best_metric is None or self.last_metric < self.best_metric:
                self.best_metric, self.best_step, self.validation_best = self.last_metric, self.step, measured


class Events:
    """A TensorBoard event file in `folder`, which hides the events of earlier files beyond step `step`.

    Synchronous: SummaryWriter's own thread dies on a full disk, and training would hang.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._new, self._scalar = event_pb2.Event, scalar
        self._writer = EventsWriter(str(folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(self._new(step=step + 1 if step else 0, session_log=start))
        self.flush()

    def add(self, name: str, value: float, step: int) -> None:
        """Add one scalar. Raises OSError when the disk is full."""
        self._write(self._new(step=step, summary=self._scalar(name, value)))
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def _write(self, event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def flush(self) -> None:
        """Write what was added to disk. Raises OSError."""
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close. Raises OSError."""
        self._writer.close()


class MetricsLog:
    """metrics.jsonl and, if asked for, TensorBoard events below `folder`, both cut back to `step` steps at the start.

    With `active=False` (every rank but the first) nothing is touched. Raises UserError when the disk is full.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool, active: bool):
        self.file = self.events = None
        self.path = folder / "metrics.jsonl"
        if not active:
            return
        kept = [line for line in _lines(self.path) if step > 0 and line["step"] <= step]
        files.write_text(self.path, "".join(_encoded(line) for line in kept))
        with self._writing():
            self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - unbuffered: closing cannot fail
            if tensorboard:
                self.events = Events(folder / "tensorboard", step)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; numbers also go to TensorBoard under train/ and validation/<set>/."""
        if self.file is None:
            return
        with self._writing():
            files.write_all(self.file, _encoded(line).encode())
            if self.events is not None:
                groups = {f"validation/{name}": values for name, values in line.get("validation", {}).items()}
                for group, values in (groups or {"train": line}).items():
                    for name, value in values.items():
                        if name != "step" and value is not None:
                            self.events.add(f"{group}/{name}", value, line["step"])

    def sync(self) -> None:
        """Flush to disk; called before each checkpoint, so that no line older than it can be lost."""
        if self.file is not None:
            with self._writing():
                os.fsync(self.file.fileno())
                if self.events is not None:
                    self.events.flush()

    def close(self) -> None:
        """Close both."""
        if self.file is not None:
            with self._writing():
                self.file.close()
                if self.events is not None:
                    self.events.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            place = error.filename or self.path.parent
            raise UserError(f"{place}: {error.strerror or error}; free disk space and run again") from error


def _encoded(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _lines(path: Path) -> list[dict]:
    """The complete lines of an earlier run, up to the first that is cut off."""
    found: list[dict] = []
    for *_, value in files.scan_jsonl(path) if path.exists() else ():
        if not isinstance(value, dict) or "step" not in value:
            break
        found.append(value)
    return found
