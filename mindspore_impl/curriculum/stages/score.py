"""How hard each record of a data set is, written into its meta: length, loss, pass rate."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from mindspore_impl import files
from mindspore_impl.curriculum import estimate
from mindspore_impl.curriculum.stages.base import Context, PlannedStage, Shared, Stage, problem_of, stage_kind
from mindspore_impl.curriculum.stages.rollout import judged
from mindspore_impl.data import difficulty, judging
from mindspore_impl.data.packing import fitting
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.options import ScoreOptions
from mindspore_impl.schema import option
from mindspore_impl.text.chat import Sample
from mindspore_impl.text.records import Record, record_to_json


@stage_kind
@dataclass(kw_only=True)
class ScoreStage(Stage):
    """How hard each record of a set is, written into its meta. A data set of source `stage` reads the result."""

    kind: Literal["score"] = "score"
    set: str = ""  # the data set
    init: str | None = option(None, artifact="weights")  # weights whose loss on each record is difficulty_loss
    model: str | None = None  # an entry of `models`; null: that of the stage in `init`
    rollouts: str | None = option(None, artifact="rollouts")  # answers to its prompts: difficulty_pass_rate
    sequence_length: int = option(128, low=2)  # tokens in a packed row
    score: ScoreOptions = field(default_factory=ScoreOptions)

    group: ClassVar[str] = "selection"
    provides: ClassVar[dict[str, str]] = {"records": "records.jsonl"}
    outputs: ClassVar[tuple[str, ...]] = ("records.jsonl",)
    less_memory: ClassVar[str] = "lower {0}.score.rows_per_batch, {0}.sequence_length"

    def data_sets(self, key: str, shared: Shared) -> list[tuple[str, str]]:
        return [(f"{key}.set", self.set)]

    def problems(self, key: str, shared: Shared) -> Iterator[str]:
        yield from super().problems(key, shared)
        if self.init is not None:
            yield from shared.too_long(f"{key}.sequence_length", self.sequence_length, self.model_name(shared))
        answers = getattr(shared.stages.get(self.rollouts), "rollout", None)
        if answers is not None and not answers.keep_truncated:
            yield (
                f"{key}.rollouts: {self.rollouts!r} leaves out truncated answers, which count as wrong in a pass rate; "
                f"set stages.{self.rollouts}.rollout.keep_truncated=true"
            )

    def work(self) -> str:
        measured = ["length", *(["loss"] if self.init else []), *(["pass rate"] if self.rollouts else [])]
        return f"{', '.join(measured)} of each record of {self.set}"

    def memory(self, shared: Shared) -> int | None:
        if self.init is None:
            return None
        model = shared.sized_model(self.model_name(shared))
        return estimate.forward_bytes(model, self.score.rows_per_batch, self.sequence_length, shared.runtime)

    def hands_on(self) -> str:
        return self.set if not self.rollouts and not (self.init and self.score.overlong == "drop") else ""

    def data_problems(self, key: str, context: Context) -> Iterator[str]:
        yield from super().data_problems(key, context)
        if context.config.maker_of(self.set) is not None:
            return
        yield from problem_of(self._samples, key, context)
        if self.init:
            yield from problem_of(self._fitting, key, context.samples(self.set))
        if self.rollouts:
            yield from problem_of(self._check_answers, key, context, where=f"{key}.rollouts")

    def _check_answers(self, key: str, context: Context) -> None:
        if (asked := judged(self.rollouts, context)) is not None:
            self._answered(key, context.records(self.set), asked)

    def _samples(self, key: str, context: Context) -> dict[str, Sample]:
        """The one sample of each record, by its id."""
        if len(samples := context.samples(self.set)) > len(context.records(self.set)):
            fault = "a record of several turns is several samples, as the template forgets earlier reasoning"
            raise UserError(f"{key}.set: {self.set}: {fault}; score a set of single turns")
        return {sample.record_id: sample for sample in samples}

    def _fitting(self, key: str, samples: list[Sample]) -> list[Sample]:
        """The samples whose loss is measured."""
        keys = (f"{key}.sequence_length", f"{key}.score.overlong=drop")
        return fitting(samples, self.sequence_length, self.score.overlong, keys)

    def _answered(self, key: str, records: list[Record], prompts: Collection[tuple[str, str]]) -> list[Record]:
        """The records that are among `prompts`."""
        if found := [record for record in records if (record.id, record.thinking) in prompts]:
            return found
        raise UserError(
            f"{key}.rollouts: {self.rollouts} has no answer to any of the {len(records)} records of {self.set}; name "
            "the rollouts of this set"
        )

    def run(self, context: Context, planned: PlannedStage, folder: Path) -> dict[str, Any]:
        """Write the records of the set, their difficulty in meta, to `folder`/records.jsonl.

        Raises UserError when a loss is not finite, an answer cannot be judged or nothing is left.
        """
        from mindspore_impl.evaluation.sample_loss import LossJob, sample_losses

        key, verdicts = f"stages.{planned.name}", {}
        records, samples = context.records(self.set), self._samples(key, context)
        given = len(records)
        if self.rollouts:
            verdicts = judging.judge(context.load(self.rollouts, "rollouts"), context.tokenizer)
            records = self._answered(key, records, verdicts)
        answered = len(records)
        if self.init:
            kept = {sample.record_id for sample in self._fitting(key, [samples[record.id] for record in records])}
            records = [record for record in records if record.id in kept]
        measured, seconds = {difficulty.LENGTH: [len(samples[record.id].ids) for record in records]}, 0.0
        if self.init:
            scored = [samples[record.id] for record in records]
            model, digest = context.build_model(planned.model, self.init)
            size = self.score.records_per_part
            # Parts of other weights or of another size are never read: they have another name.
            parts = folder / "parts" / f"{digest[:16]}_{size}"
            job = LossJob(model, scored, self.sequence_length, self.score.rows_per_batch, parts, size)
            measured[difficulty.LOSS], seconds = sample_losses(job)
        if self.rollouts:
            measured[difficulty.PASS_RATE] = [verdicts[r.id, r.thinking].pass_rate for r in records]
        rows = (dict(zip(measured, row, strict=True)) for row in zip(*measured.values(), strict=True))
        records = [replace(record, meta=record.meta | row) for record, row in zip(records, rows, strict=True)]
        ranks.on_rank_zero(lambda: files.write_jsonl(folder / "records.jsonl", map(record_to_json, records)))
        metrics = {
            "records": len(records),
            "unanswered": given - answered,
            "too_long": answered - len(records),
            "difficulty": {field: difficulty.change(records, records, field, self.set) for field in measured},
        }
        if self.init:
            tokens = sum(measured[difficulty.LENGTH])
            metrics |= {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / max(seconds, 1e-9)}
        return metrics
