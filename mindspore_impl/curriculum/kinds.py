"""What each stage kind does: fetch its inputs, call the room that does the work, return metrics.

Heavy imports stay inside the functions, so that planning and --help stay quick.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_impl import runtime
from mindspore_impl.config import CaptureStage, Config, DistillStage, ExportStage
from mindspore_impl.curriculum.inputs import (
    RECORDS,
    ROLLOUTS,
    check_weights,
    evaluated,
    is_path,
    kl_teacher_model,
    maker_of,
    sets_of,
)
from mindspore_impl.curriculum.plan import PlannedStage, file_hash
from mindspore_impl.data.options import BatchOptions, DatasetOptions, StageSet
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError
from mindspore_impl.model.options import LoraOptions
from mindspore_impl.schema import to_plain


@dataclass
class Context:
    """What the stages of one run share. Records and samples are loaded once."""

    config: Config
    run_dir: Path
    plan: dict[str, PlannedStage]
    tokenizer: object = None
    _records: dict = field(default_factory=dict)
    _samples: dict = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """The folder of the stage called `name`."""
        return self.run_dir / "stages" / self.plan[name].folder_name

    def store(self, reference: str) -> Path:
        """The teacher store of a capture stage, or the one at a path."""
        return Path(reference) if is_path(reference) else self.folder(reference) / "store"

    def records(self, name: str) -> list:
        """The records of a data set."""
        from mindspore_impl.data.sources import load_set

        if name not in self._records:
            self._records[name] = load_set(name, self.set_options(name), self.config.seed)
        return self._records[name]

    def set_options(self, name: str) -> DatasetOptions:
        """The options of a data set; the path of one that a stage makes is that stage's file."""
        options = self.config.data.sets[name]
        if not isinstance(options, StageSet):
            return options
        return options.in_file(str(self.folder(options.stage) / RECORDS))

    def selection(self, name: str, order: str, order_by: str) -> dict | None:
        """What the band of a set did to it (`difficulty.change`), None where neither band nor order asks."""
        from mindspore_impl.data.difficulty import change
        from mindspore_impl.data.sources import load_whole

        options, kept = self.set_options(name), self.records(name)
        if options.keep is None:
            return None if order == "shuffled" else change(kept, kept, order_by, name)
        return change(load_whole(name, options, self.config.seed), kept, options.keep.field, name)

    def samples(self, name: str) -> list:
        """The rendered samples of a data set."""
        from mindspore_impl.text.chat import render

        if name not in self._samples:
            self._samples[name] = [render(record, self.tokenizer) for record in self.records(name)]
        return self._samples[name]

    def rollout_samples(self, name: str) -> list:
        """The rendered samples of a finished rollout stage, or of a rollout file that another engine wrote."""
        from mindspore_impl.data.rollouts import to_sample

        key = f"rollouts of {name}"
        if key not in self._samples:
            self._samples[key] = [to_sample(rollout, self.tokenizer) for rollout in self.rollouts(name)]
        return self._samples[key]

    def rollouts(self, name: str) -> list:
        """The rollouts of a finished rollout stage, or of a file that another engine wrote."""
        from mindspore_impl.data.rollouts import read_rollouts

        path = Path(name) if is_path(name) else self.folder(name) / "rollouts.jsonl"
        return read_rollouts(path, self.tokenizer, is_path(name) or self.plan[name].stage.rollout.keep_truncated)

    def captured_samples(self, stage: CaptureStage) -> list:
        """What a capture stage scores: its rollouts, then the labels of its sets."""
        samples = self.rollout_samples(stage.rollouts) if stage.rollouts else []
        return samples + [sample for name in stage.sets for sample in self.samples(name)]

    def build_model(self, name: str, reference: str | None, lora: LoraOptions | None = None, seed: int = 0):
        """The model of the entry `name` and the SHA-256 of its weights: those of a stage or path, or random ones.

        lora: adapters to be trained beside them, drawn with `seed`.
        """
        from mindspore_impl.model.lora import with_adapters
        from mindspore_impl.model.pangu import PanguForCausalLM
        from mindspore_impl.model.weights import identity, load_into

        options = self.model_options(name)
        source = None if reference is None else self._open_weights(name, options, reference)
        if lora is not None:
            model = with_adapters(options, lora, seed)
        else:
            model = PanguForCausalLM(options, initialise=source is None)
        if source is None:
            return model, None
        load_into(model, source, "load" if is_path(reference) else None)
        return model, identity(source, file_hash)

    def model_options(self, name: str):
        """The options of model `name`, its vocabulary filled in from the tokenizer where it is 0."""
        options, size = self.config.models[name], self.tokenizer.vocab_size
        if options.vocab_size == 0:
            return dataclasses.replace(options, vocab_size=size)
        if options.vocab_size < size:
            raise UserError(
                f"models.{name}.vocab_size: {options.vocab_size} is smaller than the tokenizer's {size}; "
                f"set it to {size}, or to 0 to follow the tokenizer"
            )
        return options

    def _open_weights(self, name: str, options, reference: str):
        """The source of a stage's or path's weights, held against the model entry `name` and the tokenizer."""
        from mindspore_impl.curriculum.resolve import open_weights

        if not is_path(reference):
            return open_weights(self.folder(reference), self.plan[reference].stage.train.select)
        source = open_weights(Path(reference))
        check_weights(source, Path(reference), options, f"models.{name}", self.tokenizer.path)
        return source


def run_training(context: Context, planned: PlannedStage, folder: Path) -> dict:
    """An sft or distill stage."""
    from mindspore_impl.data.batches import BatchStream, one_pass
    from mindspore_impl.losses.options import ObjectiveOptions
    from mindspore_impl.model.adapter_file import Adapters
    from mindspore_impl.training.trainer import TrainingJob, train

    stage = planned.stage
    # A weight of 0 leaves a set out: it need not be there.
    mixture = {name: weight for name, weight in stage.data.mixture.items() if weight}
    data = dataclasses.replace(stage.data, mixture=mixture)
    distills = isinstance(stage, DistillStage)
    model, digest = context.build_model(planned.model, stage.init, stage.lora, planned.seed)
    samples = {}
    for name in mixture:
        samples[name] = context.rollout_samples(stage.rollouts) if name == ROLLOUTS else context.samples(name)
    reader = _open_store(context, planned) if distills else None
    stream = BatchStream(samples, data, planned.seed, runtime.rank(), runtime.world_size(), teacher=reader)
    validation = {
        name: [batch for batch, _ in one_pass(_fitting(context.samples(name), data), data.sequence_length, _rows(data))]
        for name in data.validation
    }
    _warn_of_shared_records(context, planned, [name for name in mixture if name != ROLLOUTS])
    changes = {name: context.selection(name, data.order, data.order_by) for name in mixture if name != ROLLOUTS}
    summary = stream.summary() | {"selection": {name: change for name, change in changes.items() if change}}
    steps = stage.train.max_steps or stream.steps_for_epochs(stage.train.num_train_epochs)
    _print_training(context, planned, steps, summary)
    job = TrainingJob(
        model=model,
        stream=stream,
        validation=validation,
        objective=stage.objective if distills else ObjectiveOptions(),
        optimizer=stage.optimizer,
        options=stage.train,
        folder=folder,
        steps=steps,
        with_teacher=distills,
        title=planned.name,
        profile_steps=context.config.runtime.profile_steps,
        adapters=stage.lora and Adapters(stage.lora, digest),
        config=_described(context, planned.model),
    )
    return train(job) | {"data": summary}


def _warn_of_shared_records(context: Context, planned: PlannedStage, trained: list[str]) -> None:
    """Print how many records of each validation and test set are trained on too."""
    from mindspore_impl.data.overlap import shared_count

    evaluation, held_out = context.config.evaluation, list(planned.stage.data.validation)
    if planned.stage.evaluate:
        held_out += [name for name in evaluated(evaluation) if maker_of(context.config.data.sets[name]) is None]
    train = [record for name in trained for record in context.records(name)]
    for name in dict.fromkeys(held_out):
        if shared := shared_count(train, context.records(name)):
            total = len(context.records(name))
            print(f"  warning: {shared:,} of {total:,} records of {name} are trained on too ({', '.join(trained)})")


def _described(context: Context, model: str) -> dict | None:
    """The config.json of a checkpoint; None for a model that no type of Hugging Face's describes."""
    from mindspore_impl.model.hf_config import config_of, token_ids

    try:
        return config_of(context.model_options(model), "PanguEmbedded", token_ids(context.tokenizer))
    except UserError:
        return None


def _rows(data: BatchOptions) -> int:
    """Rows of one micro-batch on one device, so that validation compiles to the same shape as training."""
    return data.rows // (data.gradient_accumulation_steps * runtime.world_size())


def _fitting(samples: list, data: BatchOptions) -> list:
    """Validation cannot split or fail on an over-long sample: it leaves it out, and says so."""
    kept = [sample for sample in samples if len(sample.ids) <= data.sequence_length]
    if not kept:
        raise UserError(f"data.validation: every sample is longer than data.sequence_length {data.sequence_length}")
    if len(kept) < len(samples):
        print(f"  validation: {len(samples) - len(kept)} samples longer than {data.sequence_length} are left out")
    return kept


def _open_store(context: Context, planned: PlannedStage):
    """The stage's teacher store, held against its tokenizer, objective and model."""
    from mindspore_impl.data.teacher_store import StoreReader
    from mindspore_impl.losses.objective import check_store

    path = context.store(planned.stage.store)
    reader = StoreReader(path, tokenizer_sha256=context.tokenizer.sha256)
    head, vocab_size = reader.header, context.model_options(planned.model).vocab_size
    check_store(planned.stage.objective, head.temperature, head.mode, head.vocab_size, vocab_size, str(path))
    return reader


def _print_training(context: Context, planned: PlannedStage, steps: int, summary: dict) -> None:
    from mindspore_impl.curriculum.estimate import training_estimate

    estimate = training_estimate(context.model_options(planned.model), planned.stage, context.config.runtime)
    data, lora = planned.stage.data, planned.stage.lora
    trained = f", {estimate['trained']:,} of them beside the frozen ones (LoRA rank {lora.r})" if lora else ""
    mixture = ", ".join(f"{name} {count:,}" for name, count in summary["sets"].items())
    print(
        f"  {estimate['parameters']:,} parameters{trained}, about {estimate['bytes'] / 2**30:.2f} GiB; {steps:,} steps "
        f"x {data.rows} rows x {data.sequence_length} tokens ({data.gradient_accumulation_steps} micro-batches); "
        f"{summary['samples']:,} samples ({mixture}), packing "
        f"efficiency {summary['efficiency']:.1%}, dropped {summary['dropped']}"
    )
    for name, change in summary["selection"].items():
        print(
            f"  {name}: {change['after']:,} of {change['before']:,} records kept; mean {change['field']} "
            f"{change['mean_before']:.4g} before, {change['mean_after']:.4g} after"
        )


def run_rollout(context: Context, planned: PlannedStage, folder: Path) -> dict:
    """A rollout stage."""
    from mindspore_impl.data import answers
    from mindspore_impl.distill.rollout import run_rollout as generate

    stage = planned.stage
    model, weights = context.build_model(planned.model, stage.init)
    records = [record for name in stage.prompts for record in context.records(name)[: stage.rollout.limit]]
    return generate(
        model,
        context.tokenizer,
        records,
        stage.rollout,
        stage.sampling,
        weights,
        folder,
        planned.seed,
        check=lambda record, completion: answers.correct(record, completion) if answers.checkable(record) else None,
    )


def run_capture(context: Context, planned: PlannedStage, folder: Path) -> dict:
    """A capture stage."""
    from mindspore_impl.data.teacher_store import StoreHeader
    from mindspore_impl.distill.capture import run_capture as capture

    stage: CaptureStage = planned.stage
    model, weights = context.build_model(planned.model, stage.teacher)
    samples, options = context.captured_samples(stage), stage.capture
    # Ids beyond the tokenizer's (a padded lm_head) get no mass.
    vocab_size = context.tokenizer.vocab_size
    header = StoreHeader(
        weights, context.tokenizer.sha256, vocab_size, options.top_k, options.temperature, options.mode
    )
    return capture(model, header, samples, options, stage.sequence_length, folder, planned.seed)


def run_score(context: Context, planned: PlannedStage, folder: Path) -> dict:
    """A score stage."""
    from mindspore_impl.curriculum.make_records import score

    return score(context, planned, folder)


def run_reject(context: Context, planned: PlannedStage, folder: Path) -> dict:
    """A reject stage."""
    from mindspore_impl.curriculum.make_records import reject

    return reject(context, planned, folder)


def run_evaluate(context: Context, planned: PlannedStage, folder: Path) -> dict:
    """An evaluate stage."""
    from mindspore_impl.evaluation.harness import evaluate

    options = planned.stage.options or context.config.evaluation
    model, weights = context.build_model(planned.model, planned.stage.init)
    sets = {name: context.records(name) for name in sets_of(planned.stage, context.config)}
    teacher = None
    if options.teacher_kl:
        teacher = context.build_model(kl_teacher_model(planned.stage, context.config), options.teacher)
    alone = dataclasses.replace(options, benchmarks={})  # what the records' results do not depend on
    found = evaluate(model, context.tokenizer, sets, alone, folder, planned.seed, weights, teacher)
    if options.benchmarks:
        from mindspore_impl.curriculum.stage_benchmarks import measure

        place = folder / "benchmarks"
        found["benchmarks"] = measure(model, context.tokenizer, options, place, planned.seed, weights)
    return found


def run_export(context: Context, planned: PlannedStage, folder: Path) -> dict:
    """An export stage."""
    from mindspore_impl.export.build import default_prompts, export_package
    from mindspore_impl.text.chat import render_prompt
    from mindspore_impl.text.records import prompt_messages

    stage: ExportStage = planned.stage
    each = -(-stage.export.parity_prompts // max(1, len(stage.prompts)))
    records = [record for name in stage.prompts for record in context.records(name)[:each]]
    prompts = [render_prompt(prompt_messages(record), context.tokenizer, record.thinking) for record in records]

    def export() -> dict:
        return export_package(
            folder / "package",
            context.model_options(planned.model),
            lambda: context.build_model(planned.model, stage.init),
            context.tokenizer,
            prompts[: stage.export.parity_prompts] or default_prompts(context.tokenizer, stage.export.parity_prompts),
            stage.export,
        )

    return ranks.on_rank_zero(export)


RUNNERS: dict[str, Callable[[Context, PlannedStage, Path], dict]] = {
    "sft": run_training,
    "distill": run_training,
    "rollout": run_rollout,
    "capture": run_capture,
    "score": run_score,
    "reject": run_reject,
    "evaluate": run_evaluate,
    "export": run_export,
}


_LESS_MEMORY = {
    "sft": "raise {0}.data.gradient_accumulation_steps (same result, smaller parts), or lower {0}.data.sequence_length",
    "rollout": "lower {0}.sampling.batch_size, {0}.sampling.max_new_tokens",
    "capture": "lower {0}.capture.rows_per_batch, {0}.sequence_length",
    "score": "lower {0}.score.rows_per_batch, {0}.sequence_length",
    "evaluate": "lower evaluation.batch_size, evaluation.rows, evaluation.max_new_tokens",
}


def less_memory(planned: PlannedStage) -> str:
    """Which options make a stage need less memory, in words."""
    kind = "sft" if planned.kind == "distill" else planned.kind
    return _LESS_MEMORY.get(kind, "lower the model's size").format(f"stages.{planned.name}") + " or runtime.logits_mb"


_OUTPUTS = {
    "sft": ("checkpoints/LATEST",),
    "distill": ("checkpoints/LATEST",),
    "rollout": ("rollouts.jsonl",),
    "capture": ("store/manifest.json",),
    "score": (RECORDS,),
    "reject": (RECORDS,),
    "evaluate": (),
    "export": ("package/manifest.json", "package/weights.safetensors", "package/decode.mindir"),
}


def outputs_present(kind: str, folder: Path) -> bool:
    """Whether a finished stage's results are still there, so that removing a damaged one makes the stage run again."""
    if not all((folder / name).is_file() for name in _OUTPUTS[kind]):
        return False
    if kind != "capture":
        return True
    from mindspore_impl.data.teacher_store import shards_present

    return shards_present(folder / "store")


def describe(planned: PlannedStage) -> dict:
    """What a stage is, for stage.json: its options and named inputs."""
    return {"inputs": planned.inputs, "model": planned.model, "seed": planned.seed, "options": to_plain(planned.stage)}
