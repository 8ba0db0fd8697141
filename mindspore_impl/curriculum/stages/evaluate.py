"""Accuracy by generation, held-out perplexity, KL to a teacher and published benchmarks of one set of weights."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

from mindspore_impl.curriculum import estimate
from mindspore_impl.curriculum.stages.base import (
    Context,
    PlannedStage,
    Shared,
    Stage,
    problem_of,
    prompt_problems,
    stage_kind,
)
from mindspore_impl.curriculum.stages.inputs import Input
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation import benchmarks
from mindspore_impl.evaluation.options import EvaluationOptions
from mindspore_impl.schema import fingerprint_content, option

_MEASURES = ("accuracy", "perplexity", "teacher_kl")  # each a list of data sets


@stage_kind
@dataclass(kw_only=True)
class EvaluateStage(Stage):
    """Accuracy by generation, perplexity, KL to a teacher and benchmarks of one set of weights."""

    kind: Literal["evaluate"] = "evaluate"
    init: str = option("", artifact="weights")  # stage or path of the weights
    model: str | None = None  # an entry of `models`; null: that of the stage in `init`
    options: EvaluationOptions | None = None  # null: the run's `evaluation`

    group: ClassVar[str] = "evaluation"
    less_memory: ClassVar[str] = "lower batch_size, rows, max_new_tokens in {0}.options, or in evaluation without these"

    def settings(self, shared: Shared) -> EvaluationOptions:
        """The stage's own options, or those of the run."""
        return self.options or shared.evaluation

    def measures(self, shared: Shared) -> bool:
        """Whether there is anything to measure."""
        return bool(self.settings(shared).benchmarks or self.data_sets("", shared))

    def _key(self, key: str) -> str:
        return f"{key}.options" if self.options else "evaluation"

    def inputs(self, key: str, shared: Shared) -> list[Input]:
        options, found = self.settings(shared), super().inputs(key, shared)
        if options.teacher_kl and options.teacher:
            found.append(
                Input("kl teacher", options.teacher, "weights", f"{self._key(key)}.teacher", options.teacher_model)
            )
        return found

    def data_sets(self, key: str, shared: Shared) -> list[tuple[str, str]]:
        options = self.settings(shared)
        named = [(f"{self._key(key)}.{measure}", name) for measure in _MEASURES for name in getattr(options, measure)]
        return list({name: (where, name) for where, name in reversed(named)}.values())[::-1]

    def _teacher_model(self, shared: Shared) -> str:
        options = self.settings(shared)
        return shared.model_for(options.teacher_model, options.teacher)

    def problems(self, key: str, shared: Shared) -> Iterator[str]:
        yield from super().problems(key, shared)
        options, key = self.settings(shared), self._key(key)
        yield from benchmarks.problems(key, options)
        if options.perplexity or options.teacher_kl:
            yield from shared.too_long(f"{key}.sequence_length", options.sequence_length, self.model_name(shared))
        if options.teacher_kl and not options.teacher:
            yield f"{key}.teacher: teacher_kl needs weights to compare with; name a stage or a path"
        elif options.teacher_kl:
            try:
                teacher = self._teacher_model(shared)
            except UserError as error:
                yield f"{key}.teacher_{error}"
            else:
                yield from shared.too_long(f"{key}.sequence_length", options.sequence_length, teacher)

    def content(self, shared: Shared) -> dict:
        """What is measured; without a comparison nothing about a teacher, nor about benchmarks without one."""
        options, content = self.settings(shared), super().content(shared)
        kept = fingerprint_content(dataclasses.replace(options, benchmarks={}))
        kept = {key: value for key, value in kept.items() if options.teacher_kl or not key.startswith("teacher")}
        if options.teacher_kl:
            kept["teacher_model"] = fingerprint_content(shared.models[self._teacher_model(shared)])
        if questions := benchmarks.content(options):
            kept["benchmarks"] = questions
        return content | {"options": kept}

    def memory(self, shared: Shared) -> int:
        options, model = self.settings(shared), shared.sized_model(self.model_name(shared))
        return estimate.decoding_bytes(model, options.batch_size, options.max_new_tokens)

    def metric_paths(self, shared: Shared) -> list[str]:
        options = self.settings(shared)
        own = [f"{measure}.{name}" for measure in _MEASURES for name in getattr(options, measure)]
        return own + benchmarks.metric_paths(options)

    def measured(self, name: str) -> str:
        return self.init if name == f"eval_{self.init}" else name

    def summary(self, metrics: dict) -> str:
        def number(value: float | None, form: str) -> str:
            return "not finite" if value is None else format(value, form)

        parts = [
            f"{name} {value['accuracy']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
            for name, value in metrics.get("accuracy", {}).items()
        ]
        for name, row in metrics.get("perplexity", {}).items():
            parts.append(f"{name} perplexity {number(row['perplexity'], '.3f')}")
        for name, row in metrics.get("teacher_kl", {}).items():
            parts.append(f"{name} KL to the teacher {number(row['kl'], '.4f')}")
        for name, value in metrics.get("benchmarks", {}).items():
            parts.append(f"{name} {next((f'{m} {v:.3f}' for m, v in value.items() if m in value['stderr']), '')}")
        return "; ".join([*parts, *filter(None, [super().summary(metrics)])])

    def data_problems(self, key: str, context: Context) -> Iterator[str]:
        from mindspore_impl.evaluation.harness import check_records, check_samples

        yield from super().data_problems(key, context)
        shared, key = context.config, self._key(key)
        options, model = self.settings(shared), self.model_name(shared)
        if options.teacher_kl:
            yield from problem_of(context.model_options, self._teacher_model(shared))
        known = {each: context.records(each) for _, each in self.data_sets("", shared) if shared.maker_of(each) is None}
        there = {measure: [each for each in getattr(options, measure) if each in known] for measure in _MEASURES}
        options = dataclasses.replace(options, **there)
        prompts = list(chain(*check_records(known, options, context.tokenizer, key).values()))
        yield from prompt_problems(prompts, options.max_new_tokens, f"{key}.max_new_tokens", model, context)
        yield from problem_of(check_samples, known, options, context.tokenizer, key)
        limit = shared.models[model].max_position_embeddings
        yield from problem_of(benchmarks.check_lengths, key, options, context.tokenizer, limit)

    def run(self, context: Context, planned: PlannedStage, folder: Path) -> dict[str, Any]:
        from mindspore_impl.evaluation.harness import EvaluationJob, evaluate

        shared = context.config
        options = self.settings(shared)
        model, weights = context.build_model(planned.model, self.init)
        sets = {name: context.records(name) for _, name in self.data_sets("", shared)}
        teacher = context.build_model(self._teacher_model(shared), options.teacher) if options.teacher_kl else None
        key = self._key(f"stages.{planned.name}")
        job = EvaluationJob(model, context.tokenizer, sets, options, folder, planned.seed, weights, teacher, key)
        return evaluate(job)
