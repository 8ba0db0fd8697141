"""Steps that know right from wrong and easy from hard: labels verified, answers sampled, difficulty noted."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mindspore_impl.data import answers, difficulty, judging
from mindspore_impl.data.options import KeepOptions
from mindspore_impl.data.rollouts import read_rollouts
from mindspore_impl.data.selection.stream import Check, Context, Drop, Item
from mindspore_impl.errors import UserError
from mindspore_impl.text.chat import render
from mindspore_impl.text.tokenizer import Tokenizer


@dataclass
class VerifyOptions:
    """Whether a record's own last answer is right, by its meta.task."""

    unverifiable: Literal["keep", "drop"] = "keep"  # what becomes of a record without a task


@dataclass
class RejectionOptions:
    """Rejection sampling: each record's answer becomes the shortest right one among its generations."""

    rollouts: str = ""  # a rollout file with several answers to each prompt
    tokenizer: str = ""  # tokenizer.model or tokenizer.json of the model that answered
    template: str | None = None  # null: by the kind of tokenizer


@dataclass
class DifficultyOptions:
    """Writes difficulty_length into meta and, where a rollout file is given, difficulty_pass_rate."""

    tokenizer: str = ""
    template: str | None = None
    rollouts: str | None = None


def verify(options: VerifyOptions, context: Context) -> Check:
    """Drops records whose label is wrong: it is executed (list_programs) or compared with meta.answer."""
    wrong, unknown = Drop("its answer is wrong"), Drop("it names no task, so its answer cannot be verified")

    def check(item: Item) -> Drop | None:
        if not answers.checkable(item.record):
            return unknown if options.unverifiable == "drop" else None
        return None if answers.label_correct(item.record) else wrong

    return check


def rejection(options: RejectionOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Puts the shortest right generation in place of each record's answer; records without one go."""
    verdicts = _verdicts(options.rollouts, _tokenizer(options, context), context)
    for item in items:
        verdict = verdicts.get((item.record.id, item.record.thinking))
        if verdict is None:
            context.drop(item, Drop("no generation in the rollout file"))
        elif (best := judging.best_record(verdict, item.record.id)) is None:
            context.drop(item, Drop("no generation is right"))
        else:
            yield Item(replace(best, meta=item.record.meta | best.meta), item.set, item.place)


def measure(options: DifficultyOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Notes how long each record is and how often its prompt was answered rightly; unanswered records go."""
    tokenizer = _tokenizer(options, context)
    verdicts = _verdicts(options.rollouts, tokenizer, context) if options.rollouts else {}
    for item in items:
        record = item.record
        values = {difficulty.LENGTH: len(render(record, tokenizer).ids)}
        if options.rollouts:
            verdict = verdicts.get((record.id, record.thinking))
            if verdict is None:
                context.drop(item, Drop("no generation in the rollout file"))
                continue
            values[difficulty.PASS_RATE] = verdict.pass_rate
        yield Item(replace(record, meta=record.meta | values), item.set, item.place)


def band(options: KeepOptions, context: Context) -> Check:
    """Keeps records whose number lies between two values."""
    if options.by == "quantile" or options.bucket is not None:
        raise context.refuse("shares and buckets need a whole set; give values, or `keep` to a data set in training")
    difficulty.check_keep(options, context.where)
    outside = Drop(f"{options.field} is outside the band")

    def check(item: Item) -> Drop | None:
        value = difficulty.number_of(item.record.meta, options.field, f"{context.where}: record {item.record.id!r}")
        return None if difficulty.within(value, options) else outside

    return check


def files_of(options: RejectionOptions | DifficultyOptions) -> list[str]:
    """The files that decide what stays."""
    return [path for path in (options.tokenizer, options.rollouts) if path]


def _tokenizer(options: RejectionOptions | DifficultyOptions, context: Context) -> Tokenizer:
    if not options.tokenizer:
        raise context.refuse("tokenizer: give the file of the model's tokenizer")
    return Tokenizer.load(Path(options.tokenizer), options.template)


def _verdicts(path: str, tokenizer: Tokenizer, context: Context) -> dict:
    if not path:
        raise context.refuse("rollouts: give a rollout file")
    try:
        verdicts = judging.judge(read_rollouts(path, tokenizer, keep_truncated=True), tokenizer)
    except UserError as error:
        raise context.refuse(str(error)) from error
    right, given = (sum(getattr(v, key) for v in verdicts.values()) for key in ("right", "answers"))
    context.notes |= {"prompts": len(verdicts), "generations": given, "right": right}
    return verdicts
