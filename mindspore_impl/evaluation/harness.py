"""Evaluate a model on sets of records: accuracy by greedy generation, and teacher-forced measures.

The ranks share resumable parts; the numbers are the same bit for bit on any number of ranks.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mindspore_impl import files, runtime
from mindspore_impl.data import answers
from mindspore_impl.data.packing import fitting
from mindspore_impl.distributed import ranks, resumable
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation import benchmarks
from mindspore_impl.evaluation.backend import of_model
from mindspore_impl.evaluation.options import EvaluationOptions
from mindspore_impl.evaluation.parts import share_lines
from mindspore_impl.evaluation.scoring import wilson_interval
from mindspore_impl.evaluation.teacher_forced import BINS, measure_perplexity, measure_teacher_kl
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import Sample, parse_completion, render_prompt, samples_of
from mindspore_impl.text.records import Record, prompt_messages, record_to_json


def check_records(
    sets: dict[str, list[Record]], options: EvaluationOptions, tokenizer, key: str = "evaluation"
) -> dict[str, list[list[int]]]:
    """Render the prompts of each accuracy set, within `options.limit`. Needs no model and takes seconds.

    key: where the options stand, for messages. Raises UserError that names the set and record: a set is missing or
    empty, or a record has no known task, no right answer, or a prompt that cannot be rendered.
    """
    return {name: _rendered(sets, name, options, tokenizer, _prompt, key) for name in options.accuracy}


def check_samples(
    sets: dict[str, list[Record]], options: EvaluationOptions, tokenizer, key: str = "evaluation"
) -> dict[str, list[Sample]]:
    """Render the samples of each teacher-forced set, as `check_records` does. Refuses one longer than a row too."""
    names = dict.fromkeys(options.perplexity + options.teacher_kl)

    def samples(record: Record, tokenizer) -> list[Sample]:
        return samples_of([record], tokenizer)

    found = {name: sum(_rendered(sets, name, options, tokenizer, samples, key), []) for name in names}
    for samples in found.values():
        fitting(samples, options.sequence_length, "error", (f"{key}.sequence_length", ""))
    return found


@dataclass(frozen=True)
class EvaluationJob:
    """What is measured, on which model."""

    model: Any  # with its current parameters
    tokenizer: Any
    sets: dict[str, list[Record]]  # at least the sets that `options` names
    options: EvaluationOptions
    folder: Path  # gets samples.jsonl with every generation, resumable parts, and benchmarks/
    seed: int  # of generation
    weights_sha256: str | None = None  # parts and results of other weights in `folder` are not reused
    teacher: tuple | None = None  # (model, SHA-256 of its weights), for `options.teacher_kl`
    key: str = "evaluation"  # where the options stand in the configuration, for messages


def evaluate(job: EvaluationJob) -> dict:
    """Measure a model on the sets and benchmarks that its options name. Every rank must call this.

    Returns {"accuracy": {set: {"correct", "total", "accuracy", "low" and "high" of the 95 % Wilson interval,
    "truncated", "seconds"}}, "perplexity": {set: {"loss", "perplexity", "tokens"}}, "calibration": {set:
    `calibration`}, "tokens": generated and scored}, with `options.teacher_kl` "teacher_kl": {set:
    `measure_teacher_kl`}, and with `options.benchmarks` "benchmarks": `benchmarks.measure`. Raises UserError as
    `check_records`, or for a record that cannot be rendered.
    """
    found, options = _evaluate_records(job), job.options
    if options.benchmarks:
        backend = of_model(job.model, job.tokenizer, options.batch_size, job.weights_sha256)
        found["benchmarks"] = benchmarks.measure(backend, options, Path(job.folder) / "benchmarks", job.seed)
    return found


def _evaluate_records(job: EvaluationJob) -> dict:
    model, tokenizer, sets, folder, seed = job.model, job.tokenizer, job.sets, job.folder, job.seed
    options, weights_sha256, teacher = replace(job.options, benchmarks={}), job.weights_sha256, job.teacher
    path = Path(folder) / "samples.jsonl"
    # Rendered first: a bad record is reported before minutes of generation.
    prompts = check_records(sets, options, tokenizer, job.key)
    forced = check_samples(sets, options, tokenizer, job.key)
    chosen = {name: sets[name][: options.limit] for name in {**prompts, **forced}}
    asked = {name: [record_to_json(record) for record in records] for name, records in chosen.items()}
    shaping = asdict(options) | {"samples_in_report": None}
    made_by = [weights_sha256, tokenizer.sha256, runtime.numerics(), BINS, teacher and teacher[1]]
    work = files.sha256_json([asked, shaping, made_by, seed])
    plan = files.sha256_json([work, options.samples_in_report])
    if (results := ranks.on_rank_zero(lambda: resumable.result(path, plan))) is not None:
        return results
    place = path.parent / resumable.FOLDER / work[:16]
    accuracy, lines = {}, []
    engine = functools.cache(lambda: _engine(model, tokenizer))  # not needed when all parts are there
    for number, name in enumerate(prompts):
        part = place / f"accuracy_{number}"
        accuracy[name], found = _accuracy(engine, job, name, chosen[name], prompts[name], part)
        lines += found
    samples, compared = ({name: forced[name] for name in names} for names in (options.perplexity, options.teacher_kl))
    perplexity, calibrated = measure_perplexity(model, samples, options, place)
    tokens = sum(line["tokens"] for line in lines) + sum(value["tokens"] for value in perplexity.values())
    results = {"accuracy": accuracy, "perplexity": perplexity, "calibration": calibrated, "tokens": tokens}
    if compared:
        results["teacher_kl"] = measure_teacher_kl(model, teacher[0], compared, tokenizer.vocab_size, options, place)
    write = functools.partial(files.write_jsonl, values=lines)
    return ranks.on_rank_zero(lambda: resumable.publish_result(path, write, plan, results))


def _engine(model, tokenizer):
    from mindspore_impl.generation.engine import Engine  # imports mindspore

    return Engine(model, tokenizer)


def _accuracy(
    engine: Callable, job: EvaluationJob, name: str, records: list[Record], prompts: list[list[int]], folder: Path
) -> tuple[dict, list[dict]]:
    """Answer the records of one set greedily; return its accuracy and its lines of samples.jsonl."""
    options = job.options
    sampling = SamplingOptions(temperature=0.0, max_new_tokens=options.max_new_tokens, batch_size=options.batch_size)
    # Batches as even as possible, so that the last needs no shape of its own.
    order, total = sorted(range(len(prompts)), key=lambda index: len(prompts[index])), len(prompts)
    count = -(-total // options.batch_size)
    spans = [order[total * number // count : total * (number + 1) // count] for number in range(count)]

    def make(indices: Sequence[int], title: str) -> list[dict]:
        chosen = [prompts[index] for index in indices]
        try:
            generations = engine().generate(chosen, sampling, [job.seed] * len(chosen), progress=title)
        except UserError as error:
            raise UserError(f"evaluation set {name!r}: {error}") from error
        done = zip(indices, generations, strict=True)
        return [_line(name, records[index], generation, job.tokenizer) for index, generation in done]

    lines, seconds = share_lines(folder, spans, make, f"accuracy {name}")
    lines = [line | {"shown": index < options.samples_in_report} for index, line in enumerate(lines)]
    right = sum(line["correct"] for line in lines)
    low, high = wilson_interval(right, total)
    result = {"correct": right, "total": total, "accuracy": right / total, "low": low, "high": high}
    return {**result, "truncated": sum(not line["finished"] for line in lines), "seconds": seconds}, lines


def _line(name: str, record: Record, generation, tokenizer) -> dict:
    """The line of samples.jsonl for one answer, without `shown`."""
    completion = parse_completion([int(i) for i in generation.ids], tokenizer)
    messages = prompt_messages(record)
    roles = [f"{message.role}: {message.content}" for message in messages]
    return {
        "id": record.id,
        "set": name,
        "thinking": record.thinking,
        "prompt": "\n".join(roles) if len(messages) > 1 else messages[0].content,
        "reasoning": completion.reasoning,
        "answer": completion.answer,
        "expected": answers.expected(record),
        "correct": generation.finished and answers.correct(record, completion),
        "finished": bool(generation.finished),
        "tokens": len(generation.ids),
    }


def _prompt(record: Record, tokenizer) -> list[int]:
    """Prompt ids of a record. Raises UserError when its right answer is not known."""
    answers.expected(record)
    return render_prompt(prompt_messages(record), tokenizer, record.thinking)


def _rendered(
    sets: dict[str, list[Record]], name: str, options: EvaluationOptions, tokenizer, make: Callable, key: str
) -> list:
    """make(record, tokenizer) of the records of a set; a UserError names the key, set and record."""
    if name not in sets:
        raise UserError(f"{key}: no set is named {name!r}; the sets are: {', '.join(sorted(sets)) or 'none'}")
    if not (records := sets[name][: options.limit]):
        raise UserError(f"{key}: the set {name!r} has no record; check its file, skip, count, {key}.limit")
    made = []
    for record in records:
        try:
            made.append(make(record, tokenizer))
        except UserError as error:
            where = f"record {record.id!r}: "
            raise UserError(f"{key}: set {name!r}, {where}{str(error).removeprefix(where)}") from error
    return made
