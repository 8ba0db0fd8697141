"""The training loop of one stage: step, log, validate, checkpoint; and how it resumes."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore_impl import checkpoint, runtime
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError
from mindspore_impl.losses.objective import METRICS, LossNetwork, held_out_loss, tensors_of
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.model.adapter_file import Adapters, read_adapters, write_adapters
from mindspore_impl.training import optimizer as optimizers
from mindspore_impl.training.metrics import MetricsLog, Progress
from mindspore_impl.training.options import OptimizerOptions, TrainOptions
from mindspore_impl.training.profiling import StepProfiler
from mindspore_impl.training.schedule import learning_rate
from mindspore_impl.training.step import StepReport, make_step


def train(
    model,
    stream,
    validation: dict[str, list],
    objective: ObjectiveOptions,
    optimizer: OptimizerOptions,
    options: TrainOptions,
    folder: Path,
    *,
    steps: int,
    with_teacher: bool,
    title: str,
    profile_steps: int = 0,
    adapters: Adapters | None = None,
    config: dict | None = None,
) -> dict[str, Any]:
    """Train `model` in place for `steps` steps, or for what is left of them, and leave the selected weights in it.

    stream: BatchStream; validation: PackedBatches by set, weight 1 on supervised positions; adapters: of a model from
    `lora.with_adapters`, whose checkpoints hold its trainable parameters alone; config: content of the config.json that
    other checkpoints hold. Writes below `folder`: checkpoints/, metrics.jsonl, tensorboard/, profile/. Returns steps,
    seconds (without compilation), tokens, supervised_tokens, tokens_per_second, compile_seconds, skipped_steps,
    checkpoint_copy_seconds and checkpoint_wait_seconds (in which steps stood still), selected_step, validation_before
    and validation_after ({set: {loss, perplexity, tokens}}, after: of the selected weights) and the last logged means.
    Raises UserError when too many steps in a row are not finite, or a checkpoint does not fit or cannot be written.
    """
    folder = Path(folder)
    if options.select == "best" and not validation:
        raise UserError("train.select=best needs a validation set: name one in data.validation, or use select=last")
    progress, found = _resume(model, folder, steps, adapters)
    if progress.step < steps:
        with _open(
            model, validation, objective, optimizer, options, folder, steps, with_teacher, progress, adapters, config
        ) as session:
            if found is not None:
                arrays = checkpoint.read_arrays(found.optimizer_path)
                optimizers.load_state(session.updates, arrays, str(found.optimizer_path))
            _loop(session, stream, title, StepProfiler(folder / "profile", profile_steps))
    return _finish(model, folder, options, progress, adapters)


def _loop(session: "_Session", stream, title: str, profiler: StepProfiler) -> None:
    """Every step from where `session.progress` stands to the last one."""
    progress, options, steps = session.progress, session.options, session.steps
    epoch_steps = stream.steps_for_epochs(1)
    bar = runtime.progress_bar(steps, title, "step", initial=progress.step)
    try:
        if session.validation and not progress.validation_before:
            progress.validation_before = session.validate()
        start = time.perf_counter()
        for micro_batches in stream.steps(progress.step, steps):
            session.saver.check()
            report, compiled = session.step(micro_batches)
            seconds = time.perf_counter() - start
            tokens = sum(batch.tokens for batch in micro_batches) * runtime.world_size()  # ranks get equally many rows
            progress.add(report, METRICS, tokens, seconds, compiled)
            profiler.step_done(seconds)
            _check_finite(progress, options, session.folder)

            if _due(progress.step, options.logging_steps, steps):
                bar.set_postfix(_postfix(session.write_line(progress.step / epoch_steps)), refresh=False)
            validated = bool(session.validation) and _due(progress.step, options.eval_steps, steps)
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
    """What the loop works with."""

    model: Any
    updates: Any  # the optimizer
    network: LossNetwork
    validation: dict[str, list]
    optimizer: OptimizerOptions
    options: TrainOptions
    folder: Path
    steps: int
    with_teacher: bool
    progress: Progress
    log: MetricsLog
    saver: checkpoint.Background
    adapters: Adapters | None
    config: dict | None
    run_step: Callable | None = None
    run_validation: LossNetwork | None = None

    def step(self, micro_batches: list) -> tuple[StepReport, bool]:
        """One step; -> its report, and whether its time was compilation."""
        compiles = self.run_step is None
        if compiles:
            clip, accumulation = self.optimizer.max_grad_norm, len(micro_batches)
            self.run_step = make_step(
                self.network, self.updates, clip, accumulation, len(METRICS), runtime.world_size()
            )  # fmt: skip
        return self.run_step([tensors_of(batch, self.with_teacher) for batch in micro_batches]), compiles

    def write_line(self, epoch: float) -> dict[str, Any]:
        """Write the means since the last line."""
        names = METRICS[:-1] if self.with_teacher else METRICS[:1]
        applied = max(self.progress.step - self.progress.skipped_steps, 1)
        line = self.progress.take_line(names, learning_rate(self.optimizer, self.steps, applied), epoch)
        self.log.write(line)
        return line

    def validate(self) -> dict[str, dict]:
        """Measure and log {set: {loss, perplexity, tokens}}: mean cross entropy over supervised tokens."""
        if self.run_validation is None:
            self.run_validation = LossNetwork(self.model, ObjectiveOptions(), False, gradient=False)
        found = {name: held_out_loss(self.run_validation, batches, name) for name, batches in self.validation.items()}
        self.log.write({"step": self.progress.step, "validation": found})
        return found

    def weights(self) -> dict | Callable[[Path], None]:
        """What a checkpoint holds: all weights, or the adapters, as `checkpoint.save` takes them."""
        arrays = checkpoint.weights_of(self.model, trained=self.adapters is not None)
        if self.adapters is None:
            return arrays
        return lambda path: write_adapters(path, arrays, self.adapters)

    def save(self, metric: float | None) -> None:
        """Copy what a checkpoint of this step holds and have it written. metric: its validation loss, if measured."""
        self.progress.checkpoint_wait_seconds += self.saver.wait()  # before the copy: two of them may not fit
        start = time.perf_counter()
        state = optimizers.state_of(self.updates)  # on every rank: each may hold a part
        if runtime.rank() != 0:
            return
        weights = self.weights()
        self.progress.checkpoint_copy_seconds += time.perf_counter() - start
        step, position = self.progress.step, self.progress.position()

        def write() -> None:
            self.log.sync()  # first: no line that this checkpoint counts on can be lost
            checkpoint.save(
                self.folder / "checkpoints", step, weights, state, position, self.options.save_total_limit, metric,
                None if self.adapters else self.config, self.options.keep_every,
            )  # fmt: skip

        self.saver.submit(write)


@contextmanager
def _open(model, validation, objective, optimizer, options, folder, steps, with_teacher, progress, adapters, config):
    """Build optimizer, objective and log; -> the session. At the end the last checkpoint is there, for every rank."""
    weights = list(model.trainable_params())
    updates = optimizers.make_optimizer(weights, optimizer, steps, runtime.optimizer_ranks())
    network = LossNetwork(model, objective, with_teacher)
    log = MetricsLog(folder, progress.step, options.tensorboard, active=runtime.rank() == 0)
    try:
        with checkpoint.Background(options.async_checkpoint) as saver:
            yield _Session(
                model, updates, network, validation, optimizer, options, folder, steps, with_teacher, progress, log,
                saver, adapters, config,
            )  # fmt: skip
        ranks.barrier()
    finally:
        log.close()


def _resume(model, folder: Path, steps: int, adapters) -> tuple[Progress, checkpoint.Checkpoint | None]:
    """Put the newest checkpoint's weights into `model`; -> its progress, or a fresh one."""
    found = checkpoint.latest(folder / "checkpoints")
    if found is None:
        return Progress(), None
    if found.step > steps:
        raise UserError(
            f"{found.path}: it is of step {found.step}, but this stage has {steps} steps; raise train.max_steps, or "
            "choose another run_dir"
        )
    _load(model, found, adapters)
    return Progress.from_position(found.position, str(found.path)), found


def _load(model, found: checkpoint.Checkpoint, adapters: Adapters | None) -> None:
    """Put the weights of a checkpoint of this stage into `model`."""
    stored = read_adapters(found.weights_path)
    if stored != adapters:
        raise UserError(
            f"{found.weights_path}: it is not of this stage's adapters or not of their base; remove the stage's folder "
            "to train it again, or choose another run_dir"
        )
    checkpoint.load_into(
        model, checkpoint.read_weights(found.path), str(found.weights_path), trained=adapters is not None
    )  # fmt: skip


def _due(step: int, interval: int, steps: int) -> bool:
    """Every `interval` steps (0: never) and always after the last one."""
    return step == steps or (interval > 0 and step % interval == 0)


def _check_finite(progress: Progress, options: TrainOptions, folder: Path) -> None:
    if progress.skipped_in_a_row >= max(1, options.max_skipped_steps):
        raise UserError(
            f"{folder}: step {progress.step}: loss or gradient was not finite in {progress.skipped_in_a_row} steps in "
            f"a row; the last finite step was {progress.last_finite_step}. Lower optimizer.learning_rate, set "
            "optimizer.max_grad_norm, or look at the data of these steps; the checkpoints are intact"
        )


def _finish(model, folder: Path, options: TrainOptions, progress: Progress, adapters) -> dict[str, Any]:
    """Load the selected weights where they are not the last ones; -> the stage's metrics."""
    best = options.select == "best"
    if best and progress.best_step != progress.step:
        _load(model, checkpoint.selected(folder / "checkpoints", "best"), adapters)
    means = {name: progress.line[name] for name in (*METRICS[:-1], "loss", "grad_norm") if name in progress.line}
    return {
        "steps": progress.step,
        "seconds": progress.seconds,
        "tokens": progress.tokens,
        "supervised_tokens": progress.supervised_tokens,
        "tokens_per_second": progress.timed_tokens / progress.seconds if progress.seconds else None,
        "compile_seconds": progress.compile_seconds,
        "skipped_steps": progress.skipped_steps,
        "checkpoint_copy_seconds": progress.checkpoint_copy_seconds,
        "checkpoint_wait_seconds": progress.checkpoint_wait_seconds,
        "selected_step": progress.best_step if best else progress.step,
        "validation_before": progress.validation_before,
        "validation_after": progress.validation_best if best else progress.validation_last,
        **means,
    }


def _postfix(line: dict[str, Any]) -> dict[str, str]:
    shown = {"loss": f"{line['loss']:.4f}"} if line.get("loss") is not None else {}
    if line["tokens_per_second"]:
        shown["tokens/s"] = f"{line['tokens_per_second']:,.0f}"
    return shown | ({"skipped": str(line["skipped"])} if line["skipped"] else {})
