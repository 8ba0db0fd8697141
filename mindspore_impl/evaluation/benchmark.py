"""Runs a benchmark of `tasks/` on a backend: prompts, answers, scores, in parts that a killed run goes on with."""

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mindspore_impl import files, ranks, runtime
from mindspore_impl.data import parts
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.backend import Backend, chat_prompt, complete
from mindspore_impl.evaluation.loglikelihood import Query, encode_pair
from mindspore_impl.evaluation.scoring import wilson_interval
from mindspore_impl.evaluation.tasks import TASKS
from mindspore_impl.evaluation.tasks.form import Item, Task
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import parse_completion

ITEMS_PER_PART = 256  # of multiple choice; a part of completions is one batch


@dataclass(frozen=True)
class BenchmarkSettings:
    """How a benchmark is asked. None: the task's own number.

    form: `chat` renders a question as a user's turn, `plain` as text to be continued; `auto` is plain for multiple
    choice and the task's own form for completions. thinking: of chat turns; scores read the answer behind it.
    """

    shots: int | None = None
    limit: int | None = None  # questions of the task, the first ones
    form: Literal["auto", "chat", "plain"] = "auto"
    thinking: Literal["reasoning", "fast"] = "fast"
    max_new_tokens: int | None = None
    batch_size: int = 8
    seed: int = 0


def items_of(name: str, path: Path, settings: BenchmarkSettings) -> list[Item]:
    """The questions of the task `name` at `path`. Raises UserError for an unknown task, a faulty or empty file."""
    if name not in TASKS:
        raise UserError(f"--task: no task is named {name!r}; the tasks are {', '.join(TASKS)}")
    task = TASKS[name]
    items = task.read(Path(path), task.shots if settings.shots is None else settings.shots)[: settings.limit]
    if not items:
        raise UserError(f"{path}: holds no question of {name}; check the file and --limit")
    return items


def run(backend: Backend, name: str, items: list[Item], settings: BenchmarkSettings, folder: Path) -> dict:
    """Measure; every answer goes to `folder`/samples.jsonl.

    Returns {"total", "metrics": {metric: {"value", "stderr"} and, where every score is 0 or 1, "low" and "high" of the
    95 % Wilson interval}, "groups": {group: {"total", metric...}}, "truncated", "seconds"}. Every rank must call this.
    """
    task, folder = TASKS[name], Path(folder)
    asked = [dataclasses.asdict(item) for item in items]
    shaping = dataclasses.asdict(settings) | {"limit": None, "shots": None}  # the items say these
    plan = files.sha256_json([name, asked, shaping, backend.sha256, backend.tokenizer.sha256, runtime.numerics()])
    if (results := ranks.first(lambda: parts.result(folder / "samples.jsonl", plan))) is not None:
        return results
    make = _choose if task.score is None else _write
    spans = _spans(items, ITEMS_PER_PART if task.score is None else settings.batch_size)
    paths = [folder / parts.FOLDER / plan[:16] / f"part_{number:05d}.jsonl" for number in range(len(spans))]

    def part(number: int) -> tuple[parts.Publish, dict]:
        title = f"{name} part {number + 1}/{len(spans)}"
        try:
            lines = make(backend, task, [items[index] for index in spans[number]], settings, title)
        except UserError as error:
            raise UserError(f"task {name}: {error}") from error
        return lambda path: files.write_jsonl(path, lines), {}

    seconds = parts.seconds(parts.share(paths, part))
    found: list = [None] * len(items)
    for index, line in zip((index for span in spans for index in span), parts.lines_of(paths), strict=True):
        found[index] = line
    results = {**summary(task.metrics, found), "seconds": seconds}
    write = functools.partial(files.write_jsonl, values=found)
    return ranks.first(lambda: parts.publish_result(folder / "samples.jsonl", write, plan, results))


def _spans(items: list[Item], size: int) -> list[list[int]]:
    """Items in runs of at most `size`: those with one header together, those of like length beside each other."""
    order = sorted(range(len(items)), key=lambda index: (items[index].header, len(items[index].prompt)))
    return [order[first : first + size] for first in range(0, len(order), size)]


def _choose(backend: Backend, task: Task, items: list[Item], settings: BenchmarkSettings, title: str) -> list[dict]:
    """The option of largest log-likelihood ("acc"), and of largest log-likelihood a character ("acc_norm")."""
    queries = [_query(item, backend.tokenizer, settings) for item in items]
    lines = []
    for item, found in zip(items, backend.likelihoods(queries, title), strict=True):
        logp = [likelihood.logp for likelihood in found]
        if not all(math.isfinite(number) for number in logp):
            raise UserError(f"question {item.id}: its log-likelihood is not finite; the weights are damaged")
        a_character = [number / len(option.strip()) for number, option in zip(logp, item.options, strict=True)]
        chosen, normalised = (numbers.index(max(numbers)) for numbers in (logp, a_character))
        scores = {"acc": float(chosen == item.answer), "acc_norm": float(normalised == item.answer)}
        lines.append(_line(item, scores) | {"options": list(item.options), "logp": logp, "chosen": chosen})
    return lines


def _query(item: Item, tokenizer, settings: BenchmarkSettings) -> Query:
    text = item.header + item.prompt
    if settings.form == "chat":
        context = chat_prompt(tokenizer, text, "fast", answering=True)
        return Query(tuple(context), tuple(tuple(tokenizer.encode(option.strip())) for option in item.options))
    pairs = [encode_pair(tokenizer, text, option) for option in item.options]
    return Query(pairs[0][0], tuple(continuation for _, continuation in pairs))


def _write(backend: Backend, task: Task, items: list[Item], settings: BenchmarkSettings, title: str) -> list[dict]:
    """Greedy completions and their scores. A chat answer that was cut is scored by what is there."""
    chat = (task.form if settings.form == "auto" else settings.form) == "chat"
    prompts = [_prompt(item.header + item.prompt, backend.tokenizer, settings, chat) for item in items]
    count = task.max_new_tokens if settings.max_new_tokens is None else settings.max_new_tokens
    sampling = SamplingOptions(temperature=0.0, max_new_tokens=count, batch_size=settings.batch_size)
    seeds = [settings.seed] * len(items)
    texts = complete(backend, prompts, sampling, seeds, () if chat else task.stop, title)
    lines = []
    for item, made in zip(items, texts, strict=True):
        answer = parse_completion(made.ids, backend.tokenizer).answer if chat else made.text
        ended = made.finished or len(made.ids) < count
        scores = task.score(item, answer)
        line = {"completion": backend.tokenizer.decode(made.ids), "answer": answer, "ended": ended}
        lines.append(_line(item, scores) | line)
    return lines


def _prompt(text: str, tokenizer, settings: BenchmarkSettings, chat: bool) -> list[int]:
    if chat:
        return chat_prompt(tokenizer, text, settings.thinking)
    return [*([] if tokenizer.bos_id is None else [tokenizer.bos_id]), *tokenizer.encode(text)]


def _line(item: Item, scores: dict[str, float]) -> dict:
    """What samples.jsonl says of every answer."""
    right = dataclasses.asdict(item.answer) if dataclasses.is_dataclass(item.answer) else item.answer
    return {"id": item.id, "group": item.group, "prompt": item.header + item.prompt, "right": right, **scores}


def summary(metrics: tuple[str, ...], lines: list[dict]) -> dict:
    """Means over all lines, with standard errors and intervals, and over each group."""
    found = {}
    for metric in metrics:
        values = [line[metric] for line in lines]
        mean, total = sum(values) / len(values), len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (total - 1)) if total > 1 else 0.0
        found[metric] = {"value": mean, "stderr": spread / math.sqrt(total)}
        if set(values) <= {0.0, 1.0}:
            found[metric]["low"], found[metric]["high"] = wilson_interval(int(sum(values)), total)
    groups: dict[str, list[dict]] = {}
    for line in lines:
        groups.setdefault(line["group"], []).append(line)
    by_group = {
        name: {"total": len(some)} | {metric: sum(line[metric] for line in some) / len(some) for metric in metrics}
        for name, some in groups.items()
        if name
    }
    truncated = sum(not line.get("ended", True) for line in lines)
    return {"total": len(lines), "metrics": found, "groups": by_group, "truncated": truncated}
