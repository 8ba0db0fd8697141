"""Rejection sampling: of several answers to a prompt the shortest correct one becomes a record."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mindspore_impl import files
from mindspore_impl.curriculum.stages.base import Context, PlannedStage, Stage, problem_of, stage_kind
from mindspore_impl.curriculum.stages.rollout import judged
from mindspore_impl.data import judging
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError
from mindspore_impl.schema import option
from mindspore_impl.text.records import record_to_json


@stage_kind
@dataclass(kw_only=True)
class RejectStage(Stage):
    """Rejection sampling: the shortest correct answer to each prompt, as a record; prompts without one are left out.

    A data set of source `stage` reads the result.
    """

    kind: Literal["reject"] = "reject"
    rollouts: str = option("", artifact="rollouts")  # rollout stage or file

    group: ClassVar[str] = "selection"
    provides: ClassVar[dict[str, str]] = {"records": "records.jsonl"}
    outputs: ClassVar[tuple[str, ...]] = ("records.jsonl",)

    def data_problems(self, key: str, context: Context) -> Iterator[str]:
        yield from super().data_problems(key, context)
        yield from problem_of(judged, self.rollouts, context, where=f"{key}.rollouts")

    def run(self, context: Context, planned: PlannedStage, folder: Path) -> dict[str, Any]:
        """Write the shortest correct answers to `folder`/records.jsonl; an id is the prompt's with its mode."""
        verdicts = judging.judge(context.load(self.rollouts, "rollouts"), context.tokenizer)
        made = [judging.best_record(verdict, "/".join(prompt)) for prompt, verdict in verdicts.items()]
        records = [record for record in made if record is not None]
        answers = sum(verdict.answers for verdict in verdicts.values())
        if not records:
            raise UserError(
                f"{self.rollouts}: none of its {answers} answers to {len(verdicts)} prompts is correct; sample more, "
                "or use better weights"
            )
        ranks.on_rank_zero(lambda: files.write_jsonl(folder / "records.jsonl", map(record_to_json, records)))
        return {
            "prompts": len(verdicts),
            "records": len(records),
            "without_right_answer": len(verdicts) - len(records),
            "answers": answers,
            "right_share": sum(verdict.right for verdict in verdicts.values()) / answers,
        }
