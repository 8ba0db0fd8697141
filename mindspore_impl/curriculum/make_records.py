"""The stages that make a record file: `score` says how hard each record is, `reject` keeps right answers alone."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mindspore_impl import files
from mindspore_impl.curriculum.inputs import RECORDS
from mindspore_impl.curriculum.plan import PlannedStage
from mindspore_impl.data import difficulty, judging
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError
from mindspore_impl.text.records import Record, record_to_json

if TYPE_CHECKING:
    from mindspore_impl.curriculum.kinds import Context


def score(context: "Context", planned: PlannedStage, folder: Path) -> dict:
    """Write the records of the stage's set to `folder`/records.jsonl, their difficulty in meta.

    Returns records (written), too_long and unanswered (left out), difficulty ({field: difficulty.change}) and, where
    losses were measured, tokens, seconds and tokens_per_second. Raises UserError naming the record when a loss is not
    finite or an answer cannot be judged, and when nothing is left.
    """
    stage = planned.stage
    records = context.records(stage.set)
    samples = {record.id: sample for record, sample in zip(records, context.samples(stage.set), strict=True)}
    given = len(records)
    verdicts = {}
    if stage.rollouts:
        verdicts = judging.judge(context.rollouts(stage.rollouts), context.tokenizer)
        records = [record for record in records if (record.id, record.thinking) in verdicts]
        if not records:
            raise UserError(
                f"{stage.rollouts}: holds no answer to any of the {given} records of {stage.set}; name the rollouts of "
                "this set"
            )
    answered = len(records)
    if stage.init and stage.score.overlong == "drop":
        records = [record for record in records if len(samples[record.id].ids) <= stage.sequence_length]
        if not records:
            raise UserError(f"{stage.set}: no record fits sequence_length={stage.sequence_length}; raise it")
    measured = {difficulty.LENGTH: [len(samples[record.id].ids) for record in records]}
    if stage.init:
        scored = [samples[record.id] for record in records]
        measured[difficulty.LOSS], seconds = _losses(context, planned, folder, scored)
    if stage.rollouts:
        measured[difficulty.PASS_RATE] = [verdicts[r.id, r.thinking].pass_rate for r in records]
    values = (dict(zip(measured, row, strict=True)) for row in zip(*measured.values(), strict=True))
    records = [replace(record, meta=record.meta | row) for record, row in zip(records, values, strict=True)]
    _write(folder, records)
    metrics = {
        "records": len(records),
        "unanswered": given - answered,
        "too_long": answered - len(records),
        "difficulty": {field: difficulty.change(records, records, field, stage.set) for field in measured},
    }
    if stage.init:
        tokens = sum(measured[difficulty.LENGTH])
        metrics |= {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / max(seconds, 1e-9)}
    return metrics


def reject(context: "Context", planned: PlannedStage, folder: Path) -> dict:
    """Write the shortest right answer to each prompt to `folder`/records.jsonl, for SFT.

    A record's id is the prompt's with its thinking mode. Returns prompts, records (written), without_right_answer,
    answers and right_share. Raises UserError as `judging.judge`, and when no answer is right.
    """
    stage = planned.stage
    verdicts = judging.judge(context.rollouts(stage.rollouts), context.tokenizer)
    made = [judging.best_record(verdict, "/".join(prompt)) for prompt, verdict in verdicts.items()]
    records = [record for record in made if record is not None]
    answers = sum(verdict.answers for verdict in verdicts.values())
    if not records:
        raise UserError(
            f"{stage.rollouts}: none of its {answers} answers to {len(verdicts)} prompts is right; draw more, or take "
            "them from better weights"
        )
    _write(folder, records)
    return {
        "prompts": len(verdicts),
        "records": len(records),
        "without_right_answer": len(verdicts) - len(records),
        "answers": answers,
        "right_share": sum(verdict.right for verdict in verdicts.values()) / answers,
    }


def _losses(context: "Context", planned: PlannedStage, folder: Path, samples: list) -> tuple[list[float], float]:
    from mindspore_impl.evaluation.sample_loss import sample_losses

    stage = planned.stage
    model, digest = context.build_model(planned.model, stage.init)
    size = stage.score.records_per_part
    # Parts of other weights or of another size are never read: they live under another name.
    parts = folder / "parts" / f"{digest[:16]}_{size}"
    return sample_losses(model, samples, stage.sequence_length, stage.score.rows_per_batch, parts, size)


def _write(folder: Path, records: Iterable[Record]) -> None:
    ranks.on_rank_zero(lambda: files.write_jsonl(folder / RECORDS, map(record_to_json, records)))
