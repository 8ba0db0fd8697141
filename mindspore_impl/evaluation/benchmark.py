"""Run one benchmark of `tasks/` on a backend: ask its questions, score the answers, keep resumable parts."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.data.rollouts import refuse_copies
from mindspore_impl.distributed import ranks, resumable
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.backend import Backend, chat_prompt, complete
from mindspore_impl.evaluation.loglikelihood import Query, encode_pair
from mindspore_impl.evaluation.options import AskOptions
from mindspore_impl.evaluation.parts import runs, share_lines
from mindspore_impl.evaluation.sandbox.run import Limits, check_isolation
from mindspore_impl.evaluation.scoring import summary
from mindspore_impl.evaluation.tasks import TASKS, code
from mindspore_impl.evaluation.tasks.base import Item, Task
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.generation.sampling import sample_seed
from mindspore_impl.schema import option, rule_of
from mindspore_impl.text.chat import parse_completion
from mindspore_impl.text.records import check_text

ITEMS_PER_PART = 256  # of multiple choice; a part of completions is one batch
PASS_AT = (1, 10, 100)  # k of pass@k, up to the number of samples


@dataclass
class BenchmarkSettings(AskOptions):
    """How a benchmark is asked and run."""

    batch_size: int = option(8, low=1)
    seed: int = option(0, low=0)
    limits: Limits = Limits()  # of the programs that answers stand for


def check_settings(settings: BenchmarkSettings, name: Callable[[str], str] = str) -> None:
    """Refuse invalid settings; name(key) is the key as the user writes it. Raises UserError."""
    for field in dataclasses.fields(settings):
        number = getattr(settings, field.name)
        if isinstance(number, int | float) and (problem := rule_of(field).problem(number)):
            raise UserError(f"{name(field.name)}: {problem}")
    refuse_copies(settings.samples, settings.temperature, 0, name("samples"), name("temperature"))


@dataclass(frozen=True)
class Benchmark:
    """The questions of a task, and how they are asked."""

    name: str  # of TASKS
    items: list[Item]
    settings: BenchmarkSettings

    @property
    def task(self) -> Task:
        """The task."""
        return TASKS[self.name]

    @property
    def is_chat(self) -> bool:
        """Whether completions are asked for in a user's turn."""
        return (self.task.form if self.settings.form == "auto" else self.settings.form) == "chat"

    @property
    def new_tokens(self) -> int:
        """Most tokens of a completion."""
        return self.settings.max_new_tokens or self.task.max_new_tokens

    def prompt(self, item: Item, tokenizer) -> list[int]:
        """The ids that a completion continues."""
        text = item.header + item.prompt
        if self.is_chat:
            return chat_prompt(tokenizer, text, self.settings.thinking)
        return [*([] if tokenizer.bos_id is None else [tokenizer.bos_id]), *tokenizer.encode(text)]

    def query(self, item: Item, tokenizer) -> Query:
        """The options of an item as continuations of its question."""
        text = item.header + item.prompt
        if self.settings.form == "chat":
            context = chat_prompt(tokenizer, text, "fast", answering=True)
            return Query(tuple(context), tuple(tuple(tokenizer.encode(option.strip())) for option in item.options))
        contexts, continuations = zip(*(encode_pair(tokenizer, text, option) for option in item.options), strict=True)
        return Query(contexts[0], continuations)


def read_benchmark(name: str, path: Path, settings: BenchmarkSettings) -> Benchmark:
    """Read the questions of the task `name`. Raises UserError, also where its programs cannot be isolated."""
    if name not in TASKS:
        raise UserError(f"no task is named {name!r}; the tasks are {', '.join(TASKS)}")
    task, path = TASKS[name], Path(path)
    if not path.exists():
        raise UserError(f"task {name}: {path}: no such file or folder")
    if task.chooses and settings.samples > 1:
        raise UserError(f"task {name}: multiple choice has one answer a question; set samples to 1")
    items = task.read(path, task.shots if settings.shots is None else settings.shots)[: settings.limit]
    if not items:
        raise UserError(f"{path}: holds no question of {name}; check the file and the limit")
    for item in items:
        for text in (item.header, item.prompt, *item.options):
            check_text(text, f"{path}: question {item.id}")
    if task.program is not None:
        check_isolation(settings.limits)
    return Benchmark(name, items, settings)


def check_lengths(benchmark: Benchmark, tokenizer, limit: int) -> None:
    """Refuse questions (the four longest) that exceed `limit` tokens with their answers. Raises UserError."""
    for item in sorted(benchmark.items, key=lambda item: -len(item.header) - len(item.prompt))[:4]:
        if benchmark.task.chooses:
            query = benchmark.query(item, tokenizer)
            length, new = len(query.context), max(map(len, query.continuations)) - 1
        else:
            length, new = len(benchmark.prompt(item, tokenizer)), benchmark.new_tokens
        if length + new > limit:
            fault = f"{length} tokens + {new} more exceed the model's limit of {limit}"
            advice = "lower the number of shots or of new tokens"
            raise UserError(f"task {benchmark.name}: question {item.id}: {fault}; {advice}")


def run(backend: Backend, benchmark: Benchmark, folder: Path) -> dict:
    """Write all answers to folder/samples.jsonl; return `scoring.summary` and "seconds". Every rank must call this."""
    name, task, items, settings = benchmark.name, benchmark.task, benchmark.items, benchmark.settings
    ask = functools.partial(_choose if task.chooses else _write, backend, benchmark)
    asked = [dataclasses.asdict(item) for item in items]
    shaping = dataclasses.asdict(settings) | {"limit": None, "shots": None}  # in the items
    shaping["limits"] = shaping["limits"] if task.program else None
    plan = files.sha256_json([name, asked, shaping, backend.sha256, backend.tokenizer.sha256, runtime.numerics()])
    path = Path(folder) / "samples.jsonl"
    if (results := ranks.on_rank_zero(lambda: resumable.result(path, plan))) is not None:
        return results

    def make(indices: Sequence[int], title: str) -> list[dict]:
        try:
            return ask([items[index] for index in indices], title)
        except UserError as error:
            raise UserError(f"task {name}: {error}") from error

    # Questions with a common header together, and in the order of their length.
    order = sorted(range(len(items)), key=lambda index: (items[index].header, len(items[index].prompt)))
    spans = runs(order, ITEMS_PER_PART if task.chooses else max(1, settings.batch_size // settings.samples))
    lines, seconds = share_lines(path.parent / resumable.FOLDER / plan[:16], spans, make, name)
    results = {**summary(metrics_of(task, settings.samples), lines), "seconds": seconds}
    write = functools.partial(files.write_jsonl, values=lines)
    return ranks.on_rank_zero(lambda: resumable.publish_result(path, write, plan, results))


def metrics_of(task: Task, samples: int) -> tuple[str, ...]:
    """The metrics of a task; for programs pass@k for `samples` and every smaller k of PASS_AT."""
    if task.program is None:
        return task.metrics
    return tuple(f"pass@{k}" for k in sorted({k for k in PASS_AT if k <= samples} | {samples}))


def _choose(backend: Backend, benchmark: Benchmark, items: list[Item], title: str) -> list[dict]:
    """Choose the option of largest log-likelihood ("acc"), and of largest log-likelihood per character ("acc_norm")."""
    queries = [benchmark.query(item, backend.tokenizer) for item in items]
    lines = []
    for item, found in zip(items, backend.likelihoods(queries, title), strict=True):
        logp = [likelihood.logp for likelihood in found]
        if not all(map(math.isfinite, logp)):
            raise UserError(f"question {item.id}: its log-likelihood is not finite; the weights are damaged")
        a_character = [number / len(option.strip()) for number, option in zip(logp, item.options, strict=True)]
        chosen, normalised = (numbers.index(max(numbers)) for numbers in (logp, a_character))
        scores = {"acc": float(chosen == item.answer), "acc_norm": float(normalised == item.answer)}
        lines.append(_line(item, scores | {"options": list(item.options), "logp": logp, "chosen": chosen}))
    return lines


def _write(backend: Backend, benchmark: Benchmark, items: list[Item], title: str) -> list[dict]:
    """Generate completions and score them, truncated ones too; scores are means over the samples of a question."""
    task, settings, tokenizer = benchmark.task, benchmark.settings, backend.tokenizer
    chat, count, samples = benchmark.is_chat, benchmark.new_tokens, settings.samples
    asked = [item for item in items for _ in range(samples)]
    prompts = [ids for item in items for ids in [benchmark.prompt(item, tokenizer)] * samples]
    seeds = [sample_seed(settings.seed, item.id, number) for item in items for number in range(samples)]
    sampling = SamplingOptions(settings.temperature, max_new_tokens=count, batch_size=settings.batch_size)
    texts = complete(backend, prompts, sampling, seeds, () if chat else task.stop, title)
    answers = [parse_completion(made.ids, tokenizer).answer if chat else made.text for made in texts]
    given = list(map(task.score or task.program, asked, answers))
    scores = given if task.score else code.scores(given, settings.limits)
    written = []
    for score, made, answer in zip(scores, texts, answers, strict=True):
        ended = made.finished or len(made.ids) < count
        written.append({**score, "completion": tokenizer.decode(made.ids), "answer": answer, "ended": ended})
    return [_line(item, _mean(task, some)) for item, some in zip(items, runs(written, samples), strict=True)]


def _mean(task: Task, written: list[dict]) -> dict:
    """The answer to a question, or its `samples` and the means of their scores."""
    if len(written) == 1:
        return written[0]
    found = {metric: sum(sample[metric] for sample in written) / len(written) for metric in task.metrics}
    for metric in metrics_of(task, len(written))[len(task.metrics) :]:  # pass@k of k above 1
        right = sum(sample["pass@1"] == 1 for sample in written)
        found[metric] = code.pass_at_k(len(written), right, int(metric.removeprefix("pass@")))
    return found | {"ended": all(sample["ended"] for sample in written), "samples": written}


def _line(item: Item, found: dict) -> dict:
    """The fields of samples.jsonl that all answers have, then `found`."""
    right = dataclasses.asdict(item.answer) if dataclasses.is_dataclass(item.answer) else item.answer
    return {"id": item.id, "group": item.group, "prompt": item.header + item.prompt, "right": right, **found}
