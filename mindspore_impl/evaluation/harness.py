"""What a set of weights can do: accuracy by greedy generation, perplexity and calibration along the labels.

The work is cut into parts that do not depend on the number of ranks (see `data/parts.py`): a killed evaluation goes on
at the next part, several ranks share them, and the numbers are the same bit for bit.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.data import answers
from mindspore_impl.distributed import ranks, resumable
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.batch_parts import sums_of_batches
from mindspore_impl.evaluation.calibration import BINS, batch_sums, calibration
from mindspore_impl.evaluation.options import EvaluationOptions
from mindspore_impl.evaluation.scoring import wilson_interval
from mindspore_impl.evaluation.teacher_kl import measure_teacher_kl
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import Sample, parse_completion, render, render_prompt
from mindspore_impl.text.records import Record, prompt_messages, record_to_json


def check_records(sets: dict[str, list[Record]], options: EvaluationOptions, tokenizer) -> dict[str, list[list[int]]]:
    """The rendered prompts of each accuracy set, within `evaluation.limit`. Needs no model: it costs seconds.

    sets: at least those of `options.accuracy`. Raises UserError that names set and record when a set is missing or
    empty, or a record has no known task, no right answer, or a prompt that cannot be rendered.
    """
    return {name: _rendered(name, _chosen(sets, name, options), tokenizer, _prompt) for name in options.accuracy}


def evaluate(
    model,
    tokenizer,
    sets: dict[str, list[Record]],
    options: EvaluationOptions,
    folder: Path,
    seed: int,
    weights_sha256: str | None = None,
    teacher: tuple | None = None,
) -> dict:
    """Measure `model` on the sets that `options` names; write every generation to `folder`/samples.jsonl.

    Returns {"accuracy": {set: {"correct", "total", "accuracy", "low", "high", "truncated", "seconds"}}, "perplexity":
    {set: {"loss", "perplexity", "tokens"}}, "calibration": {set: as `calibration` gives it}, "tokens"}: shares in
    [0, 1] with their 95 % Wilson interval, loss in nats a token, tokens generated and scored together; seconds of all
    ranks side by side, and of interrupted runs, too; where `options.teacher_kl` names sets also "teacher_kl": {set: as
    `measure_teacher_kl` gives it}, against `teacher`: a model and the SHA-256 of its weights.
    Loss and perplexity are None when the model gives no finite loss. `weights_sha256` (the model's) keeps parts and
    results of other weights in `folder` from being taken over. Raises UserError that names set and
    record, like `check_records`, and for a teacher-forced set whose records cannot be rendered.
    """
    folder = Path(folder)
    # Rendered first: a bad record is reported before minutes of generation, not after.
    prompts = check_records(sets, options, tokenizer)
    forced = {
        name: _rendered(name, _chosen(sets, name, options), tokenizer, render)
        for name in dict.fromkeys(options.perplexity + options.teacher_kl)
    }
    samples, compared = ({n: forced[n] for n in names} for names in (options.perplexity, options.teacher_kl))
    asked = {name: [record_to_json(r) for r in _chosen(sets, name, options)] for name in [*prompts, *forced]}
    shaping = asdict(options) | {"samples_in_report": None}
    made_by = [weights_sha256, tokenizer.sha256, runtime.numerics(), BINS, teacher and teacher[1]]
    work = files.sha256_json([asked, shaping, made_by, seed])
    plan = files.sha256_json([work, options.samples_in_report])
    if (results := ranks.on_rank_zero(lambda: resumable.result(folder / "samples.jsonl", plan))) is not None:
        return results
    place = folder / resumable.FOLDER / work[:16]
    accuracy, lines = {}, []
    make_engine = functools.cache(lambda: _engine(model, tokenizer))
    for number, name in enumerate(prompts):
        records = _chosen(sets, name, options)
        accuracy[name], found = measure_accuracy(
            make_engine, tokenizer, name, records, prompts[name], options, seed, place / f"accuracy_{number}"
        )
        lines += found
    perplexity, calibrated = measure_perplexity(model, samples, options, place)
    tokens = sum(line["tokens"] for line in lines) + sum(value["tokens"] for value in perplexity.values())
    results = {"accuracy": accuracy, "perplexity": perplexity, "calibration": calibrated, "tokens": tokens}
    if compared:
        shape = (options.sequence_length, options.rows)
        found = measure_teacher_kl(model, teacher[0], compared, tokenizer.vocab_size, *shape, place)
        results["teacher_kl"] = found
    write = functools.partial(files.write_jsonl, values=lines)
    return ranks.on_rank_zero(lambda: resumable.publish_result(folder / "samples.jsonl", write, plan, results))


def _engine(model, tokenizer):
    from mindspore_impl.generation.engine import Engine  # imports mindspore, which a finished evaluation does not need

    return Engine(model, tokenizer)


def measure_accuracy(
    make_engine: Callable,
    tokenizer,
    name: str,
    records: list[Record],
    prompts: list[list[int]],
    options: EvaluationOptions,
    seed: int,
    folder: Path,
) -> tuple[dict, list[dict]]:
    """Accuracy of one set by greedy generation, and one object a record for samples.jsonl; its parts go to `folder`.

    `make_engine()` is called when something is left to generate. Prompts of like length make a part, of `batch_size` at
    most. `shown` marks the first `samples_in_report` records of the set: the report shows these, right or wrong.
    """
    sampling = SamplingOptions(temperature=0.0, max_new_tokens=options.max_new_tokens, batch_size=options.batch_size)
    spans = _even([index for index, _ in sorted(enumerate(prompts), key=lambda item: len(item[1]))], options.batch_size)

    def make(number: int) -> tuple[resumable.Publish, dict]:
        chosen = [prompts[index] for index in spans[number]]
        title = f"accuracy {name} part {number + 1}/{len(spans)}"
        try:
            generations = make_engine().generate(chosen, sampling, [seed] * len(chosen), progress=title)
        except UserError as error:
            raise UserError(f"evaluation set {name!r}: {error}") from error
        done = zip((records[index] for index in spans[number]), generations, strict=True)
        lines = [_line(name, record, generation, tokenizer) for record, generation in done]
        return lambda path: files.write_jsonl(path, lines), {}

    paths = [folder / f"part_{number:05d}.jsonl" for number in range(len(spans))]
    notes = resumable.share(paths, make)
    found: list = [None] * len(records)
    for index, line in zip((index for span in spans for index in span), resumable.lines_of(paths), strict=True):
        found[index] = line | {"shown": index < options.samples_in_report}
    right, total = sum(line["correct"] for line in found), len(found)
    low, high = wilson_interval(right, total)
    result = {"correct": right, "total": total, "accuracy": right / total, "low": low, "high": high}
    truncated = sum(not line["finished"] for line in found)
    return {**result, "truncated": truncated, "seconds": resumable.seconds(notes)}, found


def _even(indices: list[int], size: int) -> list[list[int]]:
    """`indices` in runs of at most `size`, as even as can be: the last one should not need a shape of its own."""
    count = -(-len(indices) // size)
    bounds = [len(indices) * number // count for number in range(count + 1)]
    return [indices[first:last] for first, last in zip(bounds, bounds[1:], strict=False)]


def _line(name: str, record: Record, generation, tokenizer) -> dict:
    """What samples.jsonl says of one answer, but for `shown`."""
    completion = parse_completion([int(i) for i in generation.ids], tokenizer)
    return {
        "id": record.id,
        "set": name,
        "thinking": record.thinking,
        "prompt": prompt_text(record),
        "reasoning": completion.reasoning,
        "answer": completion.answer,
        "expected": answers.expected(record),
        "correct": generation.finished and answers.correct(record, completion),
        "finished": bool(generation.finished),
        "tokens": len(generation.ids),
    }


def measure_perplexity(
    model, samples: dict[str, list[Sample]], options: EvaluationOptions, folder: Path
) -> tuple[dict, dict]:
    """Mean cross-entropy (nats) over the supervised tokens of each set, its exponential, and its `calibration`.

    Mean and exponential are None when not finite. All come from one forward pass.

    Parts go to `folder`. Sums are kept by batch and added up in the order of batches, whoever computed them.
    """
    if not samples:
        return {}, {}
    from mindspore_impl.losses.objective import mean_loss

    network = functools.cache(lambda: _predictions(model))
    results, calibrated = {}, {}
    for number, (name, items) in enumerate(samples.items()):
        lines = sums_of_batches(
            items, options.sequence_length, options.rows, lambda batch: batch_sums(network(), batch),
            folder / f"perplexity_{number}", f"perplexity {name}",
        )  # fmt: skip
        sums = [(math.nan if line["ce"] is None else line["ce"], line["tokens"]) for line in lines]
        results[name] = mean_loss(sums, name)
        calibrated[name] = calibration(line["bins"] for line in lines)
    return results, calibrated


def _predictions(model):
    from mindspore_impl.losses.token_losses import TokenPredictions

    return TokenPredictions(model).set_train(False)


def prompt_text(record: Record) -> str:
    """The prompt as a person reads it: the text of the user, with the roles named when there are several messages."""
    messages = prompt_messages(record)
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def _chosen(sets: dict[str, list[Record]], name: str, options: EvaluationOptions) -> list[Record]:
    if name not in sets:
        raise UserError(f"evaluation: no set is named {name!r}; the sets are: {', '.join(sorted(sets)) or 'none'}")
    records = sets[name][: options.limit]
    if not records:
        raise UserError(f"evaluation: the set {name!r} has no record; check its file, first, count, evaluation.limit")
    return records


def _prompt(record: Record, tokenizer) -> list[int]:
    """Prompt ids of a record that has a known right answer."""
    answers.expected(record)
    return render_prompt(prompt_messages(record), tokenizer, record.thinking)


def _rendered(name: str, records: list[Record], tokenizer, make: Callable) -> list:
    """make(record, tokenizer) of each record; a fault names set and record."""
    made = []
    for record in records:
        try:
            made.append(make(record, tokenizer))
        except UserError as error:
            raise UserError(f"evaluation set {name!r}, record {record.id!r}: {error}") from error
    return made
