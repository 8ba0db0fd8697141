"""Supervised fine-tuning: cross-entropy on the assistant's tokens. The distill stage derives from it."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mindspore_impl import runtime
from mindspore_impl.curriculum import estimate
from mindspore_impl.curriculum.stages.base import Context, PlannedStage, Shared, Stage, problem_of, stage_kind
from mindspore_impl.curriculum.stages.evaluate import EvaluateStage
from mindspore_impl.curriculum.stages.inputs import is_path
from mindspore_impl.curriculum.stages.rollout import shortest_rollouts
from mindspore_impl.data.options import ROLLOUTS, BatchOptions
from mindspore_impl.data.overlap import shared_count
from mindspore_impl.data.packing import fitting
from mindspore_impl.errors import UserError
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.model.options import LoraOptions
from mindspore_impl.schema import option
from mindspore_impl.training.options import OptimizerOptions, TrainOptions

MORE_PASSES = 1.1  # over the data than num_train_epochs asks for: worth a warning
JUDGED = 512  # samples that show what a teacher knows


@stage_kind
@dataclass(kw_only=True)
class SftStage(Stage):
    """Supervised fine-tuning: cross-entropy on the assistant's tokens."""

    kind: Literal["sft"] = "sft"
    model: str = "student"  # an entry of `models`
    init: str | None = option(None, artifact="weights")  # stage or path of the initial weights; null: random
    lora: LoraOptions | None = None  # null: all weights are trained
    data: BatchOptions = field(default_factory=BatchOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    evaluate: bool = option(True, fingerprint=False)  # evaluate the weights right after training

    group: ClassVar[str] = "training"
    provides: ClassVar[dict[str, str]] = {"weights": "checkpoints"}
    outputs: ClassVar[tuple[str, ...]] = ("checkpoints/LATEST",)
    less_memory: ClassVar[str] = (
        "raise {0}.data.gradient_accumulation_steps (the same result in smaller pieces), or lower "
        "{0}.data.sequence_length"
    )

    def mixture(self) -> dict[str, float]:
        """The sets that are drawn from. A weight of 0 leaves a set out: it need not exist."""
        return {name: weight for name, weight in self.data.mixture.items() if weight}

    def data_sets(self, key: str, shared: Shared) -> list[tuple[str, str]]:
        drawn = [(f"{key}.data.mixture", name) for name in self.mixture() if name != ROLLOUTS]
        return drawn + [(f"{key}.data.validation", name) for name in self.data.validation]

    def content(self, shared: Shared) -> dict:
        content = super().content(shared)
        if self.train.select == "last":  # then a validation only watches
            del content["train"]["eval_steps"]
        return content | {"data": content["data"] | {"mixture": self.mixture()}}

    def followers(self, name: str, shared: Shared) -> dict[str, Stage]:
        after = EvaluateStage(init=name)
        return {f"eval_{name}": after} if self.evaluate and after.measures(shared) else {}

    def work(self) -> str:
        size = self.data.rows * self.data.sequence_length
        if self.train.max_steps:
            return f"{self.train.max_steps:,} steps x {size:,} tokens = {self.train.max_steps * size / 1e6:.2f}M"
        return f"{self.train.num_train_epochs:g} epochs, {size:,} tokens a step"

    def memory(self, shared: Shared) -> int:
        model = shared.sized_model(self.model)
        return estimate.training_estimate(model, self.data, self.lora, shared.runtime)["bytes"]

    def problems(self, key: str, shared: Shared) -> Iterator[str]:
        yield from super().problems(key, shared)
        train, data = self.train, self.data
        if (train.max_steps is None) == (train.num_train_epochs is None):
            yield f"{key}.train: give exactly one of max_steps and num_train_epochs"
        if train.eval_steps and not data.validation:
            yield f"{key}.train.eval_steps: no set is validated on; name one in {key}.data.validation, or set it to 0"
        if train.select == "best" and not data.validation:
            yield f"{key}.train.select: best needs a validation set; name one in {key}.data.validation, or use last"
        workers, accumulation = shared.runtime.workers, data.gradient_accumulation_steps
        share = max(1, workers) * max(1, accumulation)
        if data.rows % share:
            yield (
                f"{key}.data.rows: {data.rows} rows do not divide by {workers} workers x {accumulation} "
                f"micro-batches; nearest: {max(share, round(data.rows / share) * share)}"
            )
        yield from shared.too_long(f"{key}.data.sequence_length", data.sequence_length, self.model)
        if not self.mixture():
            yield f"{key}.data.mixture: no data set has a weight above 0"
        if data.mixture.get(ROLLOUTS) and not getattr(self, "rollouts", None):
            yield f"{key}.rollouts: the mixture uses rollouts, but no stage or file is named"
        if self.lora is not None:
            from mindspore_impl.model.adapter_file import check_lora

            yield from problem_of(check_lora, self.lora, f"{key}.lora")
            if self.init is None:
                yield f"{key}.lora: adapters need weights below them; name them in {key}.init, or set lora=null"
        if self.init in shared.stages and (other := shared.stages[self.init].model_name(shared)) != self.model:
            yield f"{key}.init: {self.init!r} trains model {other!r}, this stage {self.model!r}"

    def load(self, artifact: str, folder: Path, context: Context) -> Any:
        from mindspore_impl.curriculum.resolve import open_weights

        return open_weights(folder, self.train.select)

    def data_problems(self, key: str, context: Context) -> Iterator[str]:
        from mindspore_impl.data.batches import BatchStream

        yield from super().data_problems(key, context)
        shared = context.config
        samples = {
            name: context.rollout_samples(self.rollouts) if name == ROLLOUTS else context.samples(name)
            for name in self.mixture()
            if (is_path(self.rollouts) if name == ROLLOUTS else shared.maker_of(name) is None)
        }
        # The shares of an epoch are not known while a set is missing; without weights every set is drawn whole.
        mixture = self.mixture() if len(samples) == len(self.mixture()) else {}
        data, where = dataclasses.replace(self.data, mixture=mixture), f"{key}.data"

        def check() -> None:
            teacher = self.teacher(context, key, known=True)
            BatchStream(samples, data, 0, teacher=teacher, key=where)
            self._judge(teacher, samples)

        if samples:
            yield from problem_of(check)
        if self.data.overlong != "split":
            keys = (f"{where}.sequence_length", f"{where}.overlong=drop or split")
            made = [shared.same_length(name) for name in self.mixture() if name != ROLLOUTS and shared.maker_of(name)]
            groups = [context.samples(name) for name in filter(None, made)]
            groups += [shortest_rollouts(self.rollouts, context)] if ROLLOUTS in self.mixture() else []
            for group in groups:
                yield from problem_of(fitting, group, data.sequence_length, data.overlong, keys)
        for name in filter(None, map(shared.same_length, self.data.validation)):
            yield from problem_of(self._held_out, context.samples(name), where)
        self._warn_of_overlap(key, context)

    def disk(self, context: Context) -> int:
        """Of the checkpoints that stay: weights and two moments."""
        config, train = context.config, self.train
        made = estimate.training_estimate(context.model_options(self.model), self.data, self.lora, config.runtime)
        steps = train.max_steps or 0
        count = min(train.save_total_limit, -(-steps // train.save_steps) if steps and train.save_steps else 1)
        stored = made["trained"] if self.lora else made["parameters"]
        return count * (estimate.BYTES_PER_ELEMENT * stored + estimate.BYTES_OF_MOMENTS * made["trained"])

    def _warn_of_overlap(self, key: str, context: Context) -> None:
        """Print how many records of each validation and test set are trained on too."""
        shared = context.config
        after = self.followers(key.removeprefix("stages."), shared).values()
        held_out = [*self.data.validation, *(each for stage in after for _, each in stage.data_sets(key, shared))]
        train = [each for each in self.mixture() if each != ROLLOUTS and shared.maker_of(each) is None]
        records = [record for each in train for record in context.records(each)]
        for each in dict.fromkeys(held_out):
            if shared.maker_of(each) is None and (count := shared_count(records, context.records(each))):
                total = len(context.records(each))
                print(f"warning: {key}: {count:,} of {total:,} records of {each} are trained on ({', '.join(train)})")

    def run(self, context: Context, planned: PlannedStage, folder: Path) -> dict[str, Any]:
        from mindspore_impl.data.batches import BatchStream
        from mindspore_impl.model.adapter_file import Adapters
        from mindspore_impl.training.trainer import TrainingJob, train

        model, digest = context.build_model(planned.model, self.init, self.lora, planned.seed)
        data, samples = dataclasses.replace(self.data, mixture=self.mixture()), {}
        for name in data.mixture:
            samples[name] = context.rollout_samples(self.rollouts) if name == ROLLOUTS else context.samples(name)
        key = f"stages.{planned.name}"
        teacher = self.teacher(context, key)
        ranked = runtime.rank(), runtime.world_size()
        stream = BatchStream(samples, data, planned.seed, *ranked, teacher, f"{key}.data")
        self._judge(teacher, samples)
        changes = {name: _selection(context, name, data) for name in data.mixture if name != ROLLOUTS}
        summary = stream.summary() | {"selection": {name: change for name, change in changes.items() if change}}
        wanted = self.train.num_train_epochs
        steps = self.train.max_steps or stream.steps_for_epochs(wanted)
        summary["epochs"] = stream.epochs_at(steps)
        self._print(model, steps, summary)
        if wanted and summary["epochs"] > MORE_PASSES * wanted:
            fault = f"num_train_epochs={wanted:g} makes {summary['epochs']:.1f} passes: an epoch has"
            sizes = f"{summary['rows_per_epoch']} rows, and a step takes data.rows={data.rows}; lower data.rows"
            print(f"warning: {key}.train.{fault} {sizes}")
        job = TrainingJob(
            model=model,
            stream=stream,
            validation=self._validation(context, f"{key}.data"),
            objective=self.loss(context, key, digest),
            optimizer=self.optimizer,
            options=self.train,
            folder=folder,
            steps=steps,
            with_teacher=teacher is not None,
            title=planned.name,
            profile_steps=context.config.runtime.profile_steps,
            adapters=self.lora and Adapters(self.lora, digest),
            config=_hf_config(context, planned.model),
            tokenizer_sha256=context.tokenizer.sha256,
        )
        return train(job) | {"data": summary}

    def loss(self, context: Context, key: str, init_sha256: str | None) -> ObjectiveOptions:
        """The objective, from initial weights of this hash. key: of the stage, for messages."""
        return ObjectiveOptions()

    def teacher(self, context: Context, key: str, known: bool = False):
        """The reader of the teacher store, which fits tokenizer, objective and model; None without one.

        known: before any stage has run; None for a store that is yet to be made, and no shard's hash is compared.
        """
        return None

    def _judge(self, teacher, samples: dict[str, list]) -> None:
        """Refuse a store whose teacher knows nothing of the samples of each set. teacher: its reader, or None."""
        from mindspore_impl.data.teacher_store import own_cross_entropy, refuse_ignorance

        if teacher is None:
            return
        longest = self.data.sequence_length if self.data.overlong == "drop" else math.inf
        stored = [each for drawn in samples.values() for each in drawn if len(each.ids) <= longest]
        cross_entropy = own_cross_entropy(teacher, stored[:: -(-len(stored) // JUDGED)])
        refuse_ignorance(cross_entropy, teacher.header.vocab_size, str(teacher.folder))

    def _held_out(self, samples: list, key: str) -> list:
        """The samples of a validation set that fit a row; `key`: of the stage's data."""
        return fitting(samples, self.data.sequence_length, "drop", (f"{key}.sequence_length", ""))

    def _validation(self, context: Context, key: str) -> dict[str, list]:
        """The batches of each validation set, of the samples that fit a row; a message counts the others."""
        from mindspore_impl.data.batches import one_pass

        # Rows of one micro-batch on one device: validation compiles to the same shape as training.
        rows = self.data.rows // (self.data.gradient_accumulation_steps * runtime.world_size())
        length, batches = self.data.sequence_length, {}
        for name in self.data.validation:
            samples = context.samples(name)
            kept = self._held_out(samples, key)
            if len(kept) < len(samples):
                print(f"  validation: {len(samples) - len(kept)} samples longer than {length} are left out")
            batches[name] = [batch for batch, _ in one_pass(kept, length, rows)]
        return batches

    def _print(self, model, steps: int, summary: dict) -> None:
        data, lora = self.data, self.lora
        parameters = sum(parameter.size for parameter in model.get_parameters())
        adapters = sum(parameter.size for parameter in model.trainable_params())
        trained = f", {adapters:,} of them in adapters (LoRA r={lora.r}), the rest frozen" if lora else ""
        mixture = ", ".join(f"{name} {count:,}" for name, count in summary["sets"].items())
        print(
            f"  {parameters:,} parameters{trained}; {steps:,} steps x "
            f"{data.rows} rows x {data.sequence_length} tokens ({data.gradient_accumulation_steps} micro-batches); "
            f"{summary['samples']:,} samples ({mixture}), packing efficiency {summary['efficiency']:.1%}, dropped "
            f"{summary['dropped']}"
        )
        for name, change in summary["selection"].items():
            print(
                f"  {name}: {change['after']:,} of {change['before']:,} records kept; mean {change['field']} "
                f"{change['mean_before']:.4g} before, {change['mean_after']:.4g} after"
            )


def _selection(context: Context, name: str, data: BatchOptions) -> dict | None:
    """How the band of a set changed its difficulty (`difficulty.change`); None where neither band nor order is set."""
    from mindspore_impl.data.difficulty import change

    options, kept = context.set_options(name), context.records(name)
    if options.keep is None:
        return None if data.order == "shuffled" else change(kept, kept, data.order_by, name)
    return change(context.whole(name), kept, options.keep.field, name)


def _hf_config(context: Context, model: str) -> dict | None:
    """The config.json of a checkpoint; None for a model that no Hugging Face model type describes."""
    from mindspore_impl.model.hf_config import config_of, token_ids

    try:
        return config_of(context.model_options(model), "PanguEmbedded", token_ids(context.tokenizer))
    except UserError:
        return None
