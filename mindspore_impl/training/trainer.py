"""The training loop of one stage: step, log, validate, checkpoint and resume."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspore import nn

from mindspore_impl import checkpoint, runtime
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError
from mindspore_impl.losses.objective import METRICS, LossNetwork, held_out_loss, tensors_of
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.model.adapter_file import Adapters, read_adapters, write_adapters
from mindspore_impl.schema import checked
from mindspore_impl.text.tokenizer import check_tokenizer
from mindspore_impl.training import optimizer as optimizers
from mindspore_impl.training.metrics import MetricsLog, Progress
from mindspore_impl.training.options import OptimizerOptions, TrainOptions
from mindspore_impl.training.profiling import StepProfiler
from mindspore_impl.training.schedule import learning_rate
from mindspore_impl.training.step import StepReport, make_step


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything that one training stage works with."""

    model: nn.Cell  # trained in place; holds the selected weights at the end
    stream: Any  # a BatchStream, or anything with its `steps`, `tokens` and `epochs_at`
    validation: dict[str, list] = field(default_factory=dict)  # PackedBatches by the name of their set, weights 1
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    options: TrainOptions = field(default_factory=TrainOptions)  # its max_steps and num_train_epochs are not read
    folder: Path  # where checkpoints/, metrics.jsonl, tensorboard/ and profile/ are written
    steps: int  # optimizer steps of the whole stage
    with_teacher: bool = False  # the batches hold a teacher's top-k
    title: str = "train"  # label of the progress bar
    profile_steps: int = 0
    adapters: Adapters | None = None  # of a model from `lora.with_adapters`: checkpoints hold its trained pairs only
    config: dict | None = None  # content of the config.json beside other checkpoints
    tokenizer_sha256: str | None = None  # of the tokenizer of the stream's ids; checkpoints carry it

    @property
    def checkpoints(self) -> Path:
        """The folder of this job's checkpoints."""
        return self.folder / "checkpoints"


def train(job: TrainingJob) -> dict[str, Any]:
    """Train a model in place for `job.steps` steps, or for what the newest checkpoint in `job.folder` leaves.

    Returns steps, seconds (without compilation), tokens, supervised_tokens, tokens_per_second, compile_seconds,
    skipped_steps, checkpoint_copy_seconds and checkpoint_wait_seconds (in which training stood still), selected_step,
    validation_before and validation_after ({set: {loss, perplexity, tokens}}; after: of the selected weights) and the
    last logged means. Raises UserError for options without a meaning, too many non-finite steps in a row, or a
    checkpoint that does not fit or cannot be written.
    """
    for name in ("objective", "optimizer", "options"):
        checked(getattr(job, name), name)
    if job.options.select == "best" and not job.validation:
        raise UserError("train.select=best needs a validation set: name one in data.validation, or use select=last")
    progress, found = _resume(job)
    if progress.step < job.steps:
        with _open(job, progress) as session:
            if found is not None:
                arrays = checkpoint.read_arrays(found.optimizer_path)
                optimizers.load_state(session.updates, arrays, str(found.optimizer_path))
            _loop(session)
    return _finish(job, progress)


def _loop(session: "_Session") -> None:
    """Run every step from where `session.progress` stands to the last one."""
    job, progress, options, steps = session.job, session.progress, session.job.options, session.job.steps
    profiler = StepProfiler(job.folder / "profile", job.profile_steps)
    bar = runtime.progress_bar(steps, job.title, "step", initial=progress.step)
    try:
        if job.validation and not progress.validation_before:
            progress.validation_before = session.validate()
        start = time.perf_counter()
        for micro_batches in job.stream.steps(progress.step, steps):
            session.saver.check()
            report, compiled = session.step(micro_batches)
            seconds = time.perf_counter() - start
            progress.add(report, METRICS, job.stream.tokens(progress.step), seconds, compiled)
            profiler.step_done(seconds)
            _check_finite(progress, options, job.folder)

            if _due(progress.step, options.logging_steps, steps):
                line = session.write_line(job.stream.epochs_at(progress.step))
                shown = {"loss": "loss", "tokens/s": "tokens_per_second", "skipped": "skipped"}
                bar.set_postfix({text: line[key] for text, key in shown.items() if line.get(key)}, refresh=False)
            validated = bool(job.validation) and _due(progress.step, options.eval_steps, steps)
            if validated:
                progress.note_validation(session.validate())
            improved = validated and options.select == "best" and progress.best_step == progress.step
            intervals = (options.save_steps, options.keep_every)
            saved = improved or any(_due(progress.step, interval, steps) for interval in intervals)
            if saved:
                session.save(progress.last_metric if validated else None)
            if ranks.should_stop():  # also where ranks that have drifted apart wait for each other
                if not saved:
                    session.save(None)
                raise ranks.Stopped(agreed=True)
            bar.update()
            start = time.perf_counter()
    finally:
        bar.close()
        profiler.close()


@dataclass
class _Session:
    """The open resources of one running job."""

    job: TrainingJob
    progress: Progress
    updates: nn.Optimizer
    network: LossNetwork
    log: MetricsLog
    saver: checkpoint.Background
    run_step: Callable | None = None
    run_validation: LossNetwork | None = None

    def step(self, micro_batches: list) -> tuple[StepReport, bool]:
        """Run one step; -> its report, and whether its time was compilation."""
        compiles = self.run_step is None
        if compiles:
            settings = (self.job.optimizer.max_grad_norm, len(micro_batches), len(METRICS), runtime.world_size())
            self.run_step = make_step(self.network, self.updates, *settings)
        return self.run_step([tensors_of(batch, self.job.with_teacher) for batch in micro_batches]), compiles

    def write_line(self, epoch: float) -> dict[str, Any]:
        """Write the means since the last line."""
        names = METRICS[:-1] if self.job.with_teacher else METRICS[:1]
        applied = max(self.progress.step - self.progress.skipped_steps, 1)
        line = self.progress.take_line(names, learning_rate(self.job.optimizer, self.job.steps, applied), epoch)
        self.log.write(line)
        return line

    def validate(self) -> dict[str, dict]:
        """Measure and log {set: {loss, perplexity, tokens}}: mean cross entropy over supervised tokens."""
        if self.run_validation is None:
            self.run_validation = LossNetwork(self.job.model, ObjectiveOptions(), False, gradient=False)
        found = {name: held_out_loss(self.run_validation, part, name) for name, part in self.job.validation.items()}
        self.log.write({"step": self.progress.step, "validation": found})
        return found

    def save(self, metric: float | None) -> None:
        """Copy the state of this step and have it written. metric: its validation loss, if measured."""
        job, progress = self.job, self.progress
        progress.checkpoint_wait_seconds += self.saver.wait()  # before the copy: two of them may not fit
        start = time.perf_counter()
        state = optimizers.state_of(self.updates)  # on every rank: each may hold a part
        if runtime.rank() != 0:
            return
        arrays = checkpoint.weights_of(job.model, trained=job.adapters is not None)
        weights = arrays if job.adapters is None else lambda path: write_adapters(path, arrays, job.adapters)
        progress.checkpoint_copy_seconds += time.perf_counter() - start
        step, position = progress.step, progress.position()

        def write() -> None:
            self.log.sync()  # first: no line that this checkpoint counts on can be lost
            checkpoint.save(
                job.checkpoints, step, weights, state, position, job.options.save_total_limit, metric,
                None if job.adapters else job.config, job.options.keep_every, job.tokenizer_sha256,
            )  # fmt: skip

        self.saver.submit(write)


@contextmanager
def _open(job: TrainingJob, progress: Progress) -> Iterator[_Session]:
    """Build optimizer, objective and log. On exit the last checkpoint is written, for every rank."""
    parameters = list(job.model.trainable_params())
    updates = optimizers.make_optimizer(parameters, job.optimizer, job.steps, runtime.optimizer_ranks())
    network = LossNetwork(job.model, job.objective, job.with_teacher)
    log = MetricsLog(job.folder, progress.step, job.options.tensorboard, active=runtime.rank() == 0)
    try:
        with checkpoint.Background(job.options.async_checkpoint) as saver:
            yield _Session(job, progress, updates, network, log, saver)
        ranks.barrier()
    finally:
        log.close()


def _resume(job: TrainingJob) -> tuple[Progress, checkpoint.Checkpoint | None]:
    """Load the weights of the newest checkpoint; -> its progress and itself, or a fresh progress and None."""
    found = checkpoint.latest(job.checkpoints)
    if found is None:
        return Progress(), None
    if found.step > job.steps:
        raise UserError(f"{found.path}: it is beyond train.max_steps={job.steps}; raise it, or choose another run_dir")
    _load(job, found)
    return Progress.from_position(found.position, str(found.path)), found


def _load(job: TrainingJob, found: checkpoint.Checkpoint) -> None:
    if job.tokenizer_sha256 is not None:
        check_tokenizer(found.tokenizer_sha256, job.tokenizer_sha256, found.path, "remove it to train the stage anew")
    if read_adapters(found.weights_path) != job.adapters:
        raise UserError(f"{found.weights_path}: not the adapters of this stage or not of their base; remove the folder")
    weights, trained = checkpoint.read_weights(found.path), job.adapters is not None
    checkpoint.load_into(job.model, weights, str(found.weights_path), trained=trained)


def _due(step: int, interval: int, steps: int) -> bool:
    """Every `interval` steps (0: never) and always after the last one."""
    return step == steps or (interval > 0 and step % interval == 0)


def _check_finite(progress: Progress, options: TrainOptions, folder: Path) -> None:
    if progress.skipped_in_a_row >= max(1, options.max_skipped_steps):
        fault = f"not finite in {progress.skipped_in_a_row} steps in a row since {progress.last_finite_step}"
        remedy = "lower optimizer.learning_rate, set optimizer.max_grad_norm, or look at the data"
        raise UserError(f"{folder}: step {progress.step}: {fault}; {remedy}")


def _finish(job: TrainingJob, progress: Progress) -> dict[str, Any]:
    """Load the selected weights where they are not the last ones; -> the stage's metrics."""
    best = job.options.select == "best"
    if best and progress.best_step != progress.step:
        _load(job, checkpoint.selected(job.checkpoints, "best"))
    totals = ("seconds", "tokens", "supervised_tokens", "compile_seconds", "skipped_steps",
              "checkpoint_copy_seconds", "checkpoint_wait_seconds")  # fmt: skip
    means = [name for name in (*METRICS[:-1], "loss", "grad_norm") if name in progress.line]
    return {
        "steps": progress.step,
        **{name: getattr(progress, name) for name in totals},
        "tokens_per_second": progress.timed_tokens / progress.seconds if progress.seconds else None,
        "selected_step": progress.best_step if best else progress.step,
        "validation_before": progress.validation_before,
        "validation_after": progress.validation_best if best else progress.validation_last,
        **{name: progress.line[name] for name in means},
    }
