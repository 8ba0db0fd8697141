"""The teacher's top-k at each supervised position of labels or of generations, written to a teacher store."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mindspore_impl.curriculum import estimate
from mindspore_impl.curriculum.stages.base import Context, PlannedStage, Shared, Stage, problem_of, stage_kind
from mindspore_impl.curriculum.stages.inputs import is_path
from mindspore_impl.curriculum.stages.rollout import shortest_rollouts
from mindspore_impl.data.packing import fitting
from mindspore_impl.data.teacher_store import bytes_of_position
from mindspore_impl.distill.options import CaptureOptions
from mindspore_impl.schema import option
from mindspore_impl.text.chat import Sample


@stage_kind
@dataclass(kw_only=True)
class CaptureStage(Stage):
    """The teacher's top-k at each supervised position of labels (`sets`) or generations (`rollouts`)."""

    kind: Literal["capture"] = "capture"
    teacher: str = option("", artifact="weights")  # stage or path of the teacher's weights
    model: str | None = None  # an entry of `models`; null: that of the stage in `teacher`
    rollouts: str | None = option(None, artifact="rollouts")  # rollout stage or file
    sets: list[str] = field(default_factory=list)  # data sets, scored along their labels
    sequence_length: int = option(128, low=2)  # tokens in a packed row
    capture: CaptureOptions = field(default_factory=CaptureOptions)

    group: ClassVar[str] = "scoring"
    provides: ClassVar[dict[str, str]] = {"store": "store"}
    outputs: ClassVar[tuple[str, ...]] = ("store/manifest.json",)
    less_memory: ClassVar[str] = "lower {0}.capture.rows_per_batch, {0}.sequence_length"

    def data_sets(self, key: str, shared: Shared) -> list[tuple[str, str]]:
        return [(f"{key}.sets", name) for name in self.sets]

    def problems(self, key: str, shared: Shared) -> Iterator[str]:
        yield from super().problems(key, shared)
        top_k, vocabulary = self.capture.top_k, shared.vocabulary()
        if self.capture.mode == "top_k" and top_k > vocabulary:
            yield f"{key}.capture.top_k: {top_k} exceeds the tokenizer's vocabulary of {vocabulary}"
        if not self.rollouts and not self.sets:
            yield f"{key}: name a rollout stage in `rollouts`, or data sets in `sets`"
        yield from shared.too_long(f"{key}.sequence_length", self.sequence_length, self.model_name(shared))

    def work(self) -> str:
        return f"{self.capture.mode} K={self.capture.top_k} at T={self.capture.temperature:g}"

    def memory(self, shared: Shared) -> int:
        model = shared.sized_model(self.model_name(shared))
        return estimate.forward_bytes(model, self.capture.rows_per_batch, self.sequence_length, shared.runtime)

    def is_complete(self, folder: Path) -> bool:
        from mindspore_impl.data.teacher_store import shards_present

        return super().is_complete(folder) and shards_present(folder / "store")

    def data_problems(self, key: str, context: Context) -> Iterator[str]:
        from mindspore_impl.distill.capture import distinct

        yield from super().data_problems(key, context)
        samples = self._known_samples(context)
        keys = (f"{key}.sequence_length", f"{key}.capture.overlong=drop")
        for group in (samples, shortest_rollouts(self.rollouts, context)):
            yield from problem_of(fitting, group, self.sequence_length, self.capture.overlong, keys)
        yield from problem_of(distinct, samples, where=key)

    def disk(self, context: Context) -> int:
        positions = sum(np.count_nonzero(sample.supervised[1:]) for sample in self._known_samples(context))
        return int(positions * bytes_of_position(self.capture.top_k))

    def _known_samples(self, context: Context) -> list[Sample]:
        """Those that are there before any stage has run."""
        given = context.rollout_samples(self.rollouts) if self.rollouts and is_path(self.rollouts) else []
        known = [name for name in self.sets if context.config.maker_of(name) is None]
        return given + [sample for name in known for sample in context.samples(name)]

    def request(self, context: Context) -> dict[str, Any]:
        """The fields of a CaptureJob that are the same for a teacher in this process and for one on a server.

        Scored are the rollouts, then the labels of the sets.
        """
        samples = context.rollout_samples(self.rollouts) if self.rollouts else []
        samples = samples + [sample for name in self.sets for sample in context.samples(name)]
        options, length = self.capture, self.sequence_length
        return {"tokenizer": context.tokenizer, "samples": samples, "options": options, "sequence_length": length}

    def run(self, context: Context, planned: PlannedStage, folder: Path) -> dict[str, Any]:
        from mindspore_impl.data.teacher_store import refuse_ignorance
        from mindspore_impl.distill.capture import run_capture
        from mindspore_impl.distill.jobs import CaptureJob

        model, weights = context.build_model(planned.model, self.teacher)
        job = CaptureJob(**self.request(context), folder=folder, seed=planned.seed, model=model, weights_sha256=weights)
        metrics = run_capture(replace(job, key=f"stages.{planned.name}."))
        refuse_ignorance(metrics["teacher_ce"], job.header.vocab_size, str(folder / "store"))
        return metrics
