"""A package of MindIR graphs for an edge board, with its parity report."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mindspore_impl.curriculum import estimate
from mindspore_impl.curriculum.stages.base import Context, PlannedStage, Shared, Stage, problem_of, stage_kind
from mindspore_impl.distributed import ranks
from mindspore_impl.export.options import ExportOptions
from mindspore_impl.schema import option
from mindspore_impl.text.chat import render_prompt
from mindspore_impl.text.records import prompt_messages


@stage_kind
@dataclass(kw_only=True)
class ExportStage(Stage):
    """A package of MindIR graphs for a board, with its parity report."""

    kind: Literal["export"] = "export"
    init: str = option("", artifact="weights")  # stage or path of the weights
    model: str | None = None  # an entry of `models`; null: that of the stage in `init`
    prompts: list[str] = field(default_factory=list)  # data sets whose prompts are compared; empty: the bundled task's
    export: ExportOptions = field(default_factory=ExportOptions)

    group: ClassVar[str] = "deployment"
    provides: ClassVar[dict[str, str]] = {"package": "package"}
    outputs: ClassVar[tuple[str, ...]] = (
        "package/manifest.json",
        "package/weights.safetensors",
        "package/decode.mindir",
    )

    def data_sets(self, key: str, shared: Shared) -> list[tuple[str, str]]:
        return [(f"{key}.prompts", name) for name in self.prompts]

    def problems(self, key: str, shared: Shared) -> Iterator[str]:
        from mindspore_impl.export.build import check_export

        yield from super().problems(key, shared)
        yield from problem_of(check_export, self.export, shared.models[self.model_name(shared)], f"{key}.export")

    def work(self) -> str:
        return f"{self.export.precision}, cache {self.export.cache_length}, buckets {self.export.buckets}"

    def memory(self, shared: Shared) -> int:
        from mindspore_impl.export.build import memory_estimate

        model = shared.sized_model(self.model_name(shared))
        # The package runs beside the training graph.
        return estimate.weights_bytes(model) + memory_estimate(model, self.export)["weights_shared"]

    def data_problems(self, key: str, context: Context) -> Iterator[str]:
        from mindspore_impl.export.build import check_prompts

        yield from super().data_problems(key, context)
        if not any(map(context.config.maker_of, self.prompts)):
            yield from problem_of(check_prompts, self._rendered(context), self.export, f"{key}.export")

    def disk(self, context: Context) -> int:
        from mindspore_impl.export.build import memory_estimate

        return memory_estimate(context.model_options(self.model_name(context.config)), self.export)["weights"]

    def _rendered(self, context: Context) -> list[list[int]]:
        """The ids of the prompts that are compared."""
        from mindspore_impl.export.build import default_prompts

        tokenizer, count = context.tokenizer, self.export.parity_prompts
        each = -(-count // max(1, len(self.prompts)))
        records = [record for name in self.prompts for record in context.records(name)[:each]]
        prompts = [render_prompt(prompt_messages(record), tokenizer, record.thinking) for record in records]
        return prompts[:count] or default_prompts(tokenizer, count)

    def run(self, context: Context, planned: PlannedStage, folder: Path) -> dict[str, Any]:
        from mindspore_impl.export.build import export_package

        prompts = self._rendered(context)

        def export() -> dict:
            return export_package(
                folder / "package",
                context.model_options(planned.model),
                lambda: context.build_model(planned.model, self.init),
                context.tokenizer,
                prompts,
                self.export,
                key=f"stages.{planned.name}.export",
            )

        return ranks.on_rank_zero(export)
