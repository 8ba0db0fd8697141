"""What a set of weights can do: accuracy by greedy generation, perplexity along the labels."""

import time
from collections.abc import Callable
from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.data import answers
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.options import EvaluationOptions
from mindspore_impl.evaluation.scoring import wilson_interval
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import Sample, parse_completion, render, render_prompt
from mindspore_impl.text.records import Record, prompt_messages


def check_records(sets: dict[str, list[Record]], options: EvaluationOptions, tokenizer) -> dict[str, list[list[int]]]:
    """The rendered prompts of each accuracy set, within `evaluation.limit`. Needs no model: it costs seconds.

    sets: at least those of `options.accuracy`. Raises UserError that names set and record when a set is missing or
    empty, or a record has no known task, no right answer, or a prompt that cannot be rendered.
    """
    return {name: _rendered(name, _chosen(sets, name, options), tokenizer, _prompt) for name in options.accuracy}


def evaluate(
    model, tokenizer, sets: dict[str, list[Record]], options: EvaluationOptions, folder: Path, seed: int
) -> dict:
    """Measure `model` on the sets that `options` names; write every generation to `folder`/samples.jsonl.

    Returns {"accuracy": {set: {"correct", "total", "accuracy", "low", "high", "truncated", "seconds"}}, "perplexity":
    {set: {"loss", "perplexity", "tokens"}}, "tokens"}: shares in [0, 1] with their 95 % Wilson interval, loss in nats a
    token, tokens generated and scored together.
    Loss and perplexity are None when the model gives no finite loss. Raises UserError that names set and
    record, like `check_records`, and for a perplexity set whose records cannot be rendered.
    """
    # Rendered first: a bad record is reported before minutes of generation, not after.
    prompts = check_records(sets, options, tokenizer)
    samples = {n: _rendered(n, _chosen(sets, n, options), tokenizer, render) for n in options.perplexity}
    accuracy, lines, tokens = {}, [], 0
    if prompts:
        from mindspore_impl.generation.engine import Engine  # imports mindspore

        engine = Engine(model, tokenizer)
        for name in prompts:
            records = _chosen(sets, name, options)
            accuracy[name], found = measure_accuracy(engine, tokenizer, name, records, prompts[name], options, seed)
            tokens += sum(line["tokens"] for line in found)
            lines += found
        if runtime.rank() == 0:
            files.write_jsonl(Path(folder) / "samples.jsonl", lines)
    perplexity = measure_perplexity(model, samples, options) if samples else {}
    tokens += sum(value["tokens"] for value in perplexity.values())
    return {"accuracy": accuracy, "perplexity": perplexity, "tokens": tokens}


def measure_accuracy(
    engine, tokenizer, name: str, records: list[Record], prompts: list[list[int]], options: EvaluationOptions, seed: int
) -> tuple[dict, list[dict]]:
    """Accuracy of one set by greedy generation, and one object a record for samples.jsonl.

    `shown` marks the first `samples_in_report` records of the set: the report shows these, right or wrong.
    """
    started = time.perf_counter()
    sampling = SamplingOptions(temperature=0.0, max_new_tokens=options.max_new_tokens, batch_size=options.batch_size)
    try:
        generations = engine.generate(prompts, sampling, [seed] * len(prompts), progress=f"accuracy {name}")
    except UserError as error:
        raise UserError(f"evaluation set {name!r}: {error}") from error
    lines, truncated = [], 0
    for number, (record, generation) in enumerate(zip(records, generations, strict=True)):
        completion = parse_completion([int(i) for i in generation.ids], tokenizer)
        truncated += not generation.finished
        lines.append(
            {
                "id": record.id,
                "set": name,
                "thinking": record.thinking,
                "prompt": prompt_text(record),
                "reasoning": completion.reasoning,
                "answer": completion.answer,
                "expected": answers.expected(record),
                "correct": generation.finished and answers.correct(record, completion),
                "finished": bool(generation.finished),
                "shown": number < options.samples_in_report,
                "tokens": len(generation.ids),
            }
        )
    right, total = sum(line["correct"] for line in lines), len(lines)
    low, high = wilson_interval(right, total)
    seconds = time.perf_counter() - started
    result = {"correct": right, "total": total, "accuracy": right / total, "low": low, "high": high}
    return {**result, "truncated": truncated, "seconds": seconds}, lines


def measure_perplexity(model, samples: dict[str, list[Sample]], options: EvaluationOptions) -> dict:
    """Mean cross-entropy (nats) over the supervised tokens of each set, and its exponential; None when not finite."""
    from mindspore_impl.data.batches import one_pass
    from mindspore_impl.losses.objective import LossNetwork, held_out_loss
    from mindspore_impl.losses.options import ObjectiveOptions

    network = LossNetwork(model, ObjectiveOptions(), with_teacher=False, gradient=False)
    network.set_train(False)
    results = {}
    for name, items in samples.items():
        with runtime.progress_bar(len(items), f"perplexity {name}", "sample") as bar:
            results[name] = held_out_loss(network, _counted(items, options, bar, one_pass), name)
    return results


def _counted(items: list[Sample], options: EvaluationOptions, bar, one_pass):
    """The packed batches of `items`, moving `bar` by the samples in each."""
    for batch, placements in one_pass(items, options.sequence_length, options.rows):
        yield batch
        bar.update(sum(len(row) for row in placements))


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
