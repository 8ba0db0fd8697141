"""Steps that verify answers or measure difficulty: label verification, rejection sampling, difficulty, bands."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mindspore_impl.data import answers, judging
from mindspore_impl.data import difficulty as measures
from mindspore_impl.data.options import KeepOptions
from mindspore_impl.data.rollouts import read_rollouts
from mindspore_impl.data.selection.stream import UNANSWERED, Context, Drop, Item, rule, step
from mindspore_impl.errors import UserError
from mindspore_impl.schema import option
from mindspore_impl.text.chat import render
from mindspore_impl.text.tokenizer import Tokenizer

NO_GENERATION = Drop("no generation in the rollout file")


@dataclass
class VerifyOptions:
    """Whether a record's own last answer is right, by its meta.task."""

    unverifiable: Literal["keep", "drop"] = "keep"  # what happens to a record without a task


@rule
def verify(options: VerifyOptions, item: Item) -> Drop | None:
    """Drops records whose label the verifier of their task rejects, and prompts without an answer."""
    if not answers.checkable(item.record):
        unknown = Drop("it names no task, so its answer cannot be verified")
        return unknown if options.unverifiable == "drop" else None
    if not item.answered:
        return UNANSWERED
    return None if answers.label_correct(item.record) else Drop("its answer is wrong")


@dataclass
class RejectionOptions:
    """Rejection sampling: each record's answer is replaced by its shortest right generation."""

    rollouts: str | None = option("", artifact="file")  # a rollout file with several answers to each prompt
    tokenizer: str = option("", artifact="file")  # tokenizer.model or tokenizer.json of the model that generated
    template: str | None = None  # null: by the kind of tokenizer


@step
def rejection(options: RejectionOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Replaces each record's answer by its shortest right generation; drops records without one."""
    verdicts = _verdicts(options, context, _tokenizer(options, context))
    for item in items:
        verdict = verdicts.get((item.record.id, item.record.thinking))
        if verdict is None:
            context.drop(item, NO_GENERATION)
        elif (best := judging.best_record(verdict, item.record.id)) is None:
            context.drop(item, Drop("no generation is right"))
        else:
            yield Item(replace(best, meta=item.record.meta | best.meta), item.set, item.place)


@dataclass
class DifficultyOptions(RejectionOptions):
    """Writes difficulty_length into meta and, where a rollout file is given, difficulty_pass_rate."""

    rollouts: str | None = option(None, artifact="file")


@step
def difficulty(options: DifficultyOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Writes length and pass rate into the meta of each record; drops records without an answer."""
    tokenizer = _tokenizer(options, context)
    verdicts = _verdicts(options, context, tokenizer) if options.rollouts else {}
    for item in items:
        record, verdict = item.record, verdicts.get((item.record.id, item.record.thinking))
        if not item.answered or options.rollouts and verdict is None:
            context.drop(item, NO_GENERATION if item.answered else UNANSWERED)
            continue
        values = {measures.LENGTH: len(render(record, tokenizer).ids)}
        if verdict is not None:
            values[measures.PASS_RATE] = verdict.pass_rate
        yield Item(replace(record, meta=record.meta | values), item.set, item.place)


@step
def band(options: KeepOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Drops records whose number lies outside the band."""
    if options.by == "quantile" or options.bucket is not None:
        raise context.refuse("shares and buckets need a whole set; give values, or `keep` to a data set in training")
    measures.check_keep(options, context.where)
    for item in items:
        value = measures.number_of(item.record.meta, options.field, f"{context.where}: record {item.record.id!r}")
        if measures.within(value, options):
            yield item
        else:
            context.drop(item, Drop(f"{options.field} is outside the band"))


def _tokenizer(options: RejectionOptions, context: Context) -> Tokenizer:
    if not options.tokenizer:
        raise context.refuse("tokenizer: give the file of the model's tokenizer")
    return Tokenizer.load(Path(options.tokenizer), options.template)


def _verdicts(options: RejectionOptions, context: Context, tokenizer: Tokenizer) -> dict:
    """The verdicts on a rollout file, computed once for all steps of a recipe."""
    if not options.rollouts:
        raise context.refuse("rollouts: give a rollout file")
    key = ("verdicts", options.rollouts, options.tokenizer, options.template)
    if key not in context.shared:
        try:
            rollouts = read_rollouts(options.rollouts, tokenizer, keep_truncated=True)
            context.shared[key] = judging.judge(rollouts, tokenizer)
        except UserError as error:
            raise context.refuse(str(error)) from error
    verdicts = context.shared[key]
    right, given = (sum(getattr(v, key) for v in verdicts.values()) for key in ("right", "answers"))
    context.notes |= {"prompts": len(verdicts), "generations": given, "right": right}
    return verdicts
