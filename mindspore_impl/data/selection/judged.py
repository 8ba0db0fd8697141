"""Steps that verify answers or measure difficulty: label verification, rejection sampling, difficulty, bands."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mindspore_impl.data import answers, difficulty, judging
from mindspore_impl.data.options import KeepOptions
from mindspore_impl.data.rollouts import read_rollouts
from mindspore_impl.data.selection.options import DifficultyOptions, RejectionOptions, VerifyOptions
from mindspore_impl.data.selection.stream import UNANSWERED, Check, Context, Drop, Item
from mindspore_impl.errors import UserError
from mindspore_impl.text.chat import render
from mindspore_impl.text.tokenizer import Tokenizer


def verify(options: VerifyOptions, context: Context) -> Check:
    """Drops records whose label the verifier of their task rejects, and prompts without an answer."""
    wrong, unknown = Drop("its answer is wrong"), Drop("it names no task, so its answer cannot be verified")

    def check(item: Item) -> Drop | None:
        if not answers.checkable(item.record):
            return unknown if options.unverifiable == "drop" else None
        if not item.answered:
            return UNANSWERED
        return None if answers.label_correct(item.record) else wrong

    return check


def rejection(options: RejectionOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Replaces each record's answer by its shortest right generation; drops records without one."""
    verdicts = _verdicts(options, context, _tokenizer(options, context))
    for item in items:
        verdict = verdicts.get((item.record.id, item.record.thinking))
        if verdict is None:
            context.drop(item, Drop("no generation in the rollout file"))
        elif (best := judging.best_record(verdict, item.record.id)) is None:
            context.drop(item, Drop("no generation is right"))
        else:
            yield Item(replace(best, meta=item.record.meta | best.meta), item.set, item.place)


def measure(options: DifficultyOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Writes length and pass rate into the meta of each record; drops records without an answer."""
    tokenizer = _tokenizer(options, context)
    verdicts = _verdicts(options, context, tokenizer) if options.rollouts else {}
    for item in items:
        record = item.record
        if not item.answered:
            context.drop(item, UNANSWERED)
            continue
        values = {difficulty.LENGTH: len(render(record, tokenizer).ids)}
        if options.rollouts:
            verdict = verdicts.get((record.id, record.thinking))
            if verdict is None:
                context.drop(item, Drop("no generation in the rollout file"))
                continue
            values[difficulty.PASS_RATE] = verdict.pass_rate
        yield Item(replace(record, meta=record.meta | values), item.set, item.place)


def band(options: KeepOptions, context: Context) -> Check:
    """Drops records whose number lies outside the band."""
    if options.by == "quantile" or options.bucket is not None:
        raise context.refuse("shares and buckets need a whole set; give values, or `keep` to a data set in training")
    difficulty.check_keep(options, context.where)
    outside = Drop(f"{options.field} is outside the band")

    def check(item: Item) -> Drop | None:
        value = difficulty.number_of(item.record.meta, options.field, f"{context.where}: record {item.record.id!r}")
        return None if difficulty.within(value, options) else outside

    return check


def files_of(options: RejectionOptions | DifficultyOptions) -> list[str]:
    """The files that determine the result."""
    return [path for path in (options.tokenizer, options.rollouts) if path]


def _tokenizer(options: RejectionOptions | DifficultyOptions, context: Context) -> Tokenizer:
    if not options.tokenizer:
        raise context.refuse("tokenizer: give the file of the model's tokenizer")
    return Tokenizer.load(Path(options.tokenizer), options.template)


def _verdicts(options: RejectionOptions | DifficultyOptions, context: Context, tokenizer: Tokenizer) -> dict:
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
