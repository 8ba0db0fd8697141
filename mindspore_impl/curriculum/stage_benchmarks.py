"""Published benchmarks that a curriculum measures after its stages: the entries of `evaluation.benchmarks`."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.config import Config, EvaluateStage
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation import benchmark
from mindspore_impl.evaluation.benchmark import BenchmarkSettings
from mindspore_impl.evaluation.options import AskOptions, BenchmarkOptions, EvaluationOptions
from mindspore_impl.evaluation.tasks import TASKS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # of a folder, and of a word in sweep.metric


def benchmark_problems(config: Config) -> list[str]:
    """Every reason why an entry in use could not be measured, each naming its key. Needs no model."""
    found = {}
    for name in config.order:
        stage = config.stages[name]
        own = getattr(stage, "options", None)
        if isinstance(stage, EvaluateStage) or getattr(stage, "evaluate", False):
            found[f"stages.{name}.options" if own else "evaluation"] = own or config.evaluation
    return [problem for key, options in found.items() for problem in _problems(key, options)]


def _problems(key: str, options: EvaluationOptions) -> Iterator[str]:
    for name, entry in options.benchmarks.items():
        where = f"{key}.benchmarks.{name}"
        if not _NAME.fullmatch(name):
            yield f"{where}: {name!r} cannot be the name of a benchmark; use letters, digits, _ and -"
        elif not entry.path:
            yield f"{where}.path: no file is given; name the published file or folder"
        else:
            try:
                benchmark.check_settings(_settings(entry, options, 0), f"{where}.{{}}".format)
                _items(name, entry)
            except UserError as error:
                yield f"{where}: {error}".replace(f"{where}: {where}", where)


def benchmark_content(options: EvaluationOptions) -> list:
    """What decides the results, for a stage's fingerprint: the questions stand for the files."""
    content = []
    for name, entry in options.benchmarks.items():
        shaping = dataclasses.asdict(entry) | {"path": None, "shots": None, "limit": None}  # the questions say these
        content.append([name, shaping | {"task": _task(name, entry), "questions": _questions(name, entry)[1]}])
    return content


def check_lengths(key: str, options: EvaluationOptions, tokenizer, limit: int) -> None:
    """Refuse questions that are too long for a model of `limit` positions.

    Raises UserError that names the entry of the options at `key`.
    """
    for name, entry in options.benchmarks.items():
        try:
            benchmark.check_lengths(
                _task(name, entry), _items(name, entry), tokenizer, limit, _settings(entry, options, 0)
            )
        except UserError as error:
            raise UserError(f"{key}.benchmarks.{name}: {error}") from error


def measure(
    model, tokenizer, options: EvaluationOptions, folder: Path, seed: int, weights_sha256: str
) -> dict[str, dict]:
    """Measure `model` on every entry; answers go to `folder`/NAME/samples.jsonl. Every rank must call this.

    Returns {NAME: {"total", "truncated", "seconds", METRIC: the mean..., "stderr": {METRIC}, "intervals": {METRIC:
    [low, high]} (95 % Wilson, where every score is 0 or 1), "groups": {GROUP: {"total", METRIC...}}}}.
    """
    from mindspore_impl.evaluation.backend import of_model

    backend = of_model(model, tokenizer, options.batch_size, weights_sha256)
    results = {}
    for name, entry in options.benchmarks.items():
        settings = _settings(entry, options, seed)
        found = benchmark.run(backend, _task(name, entry), _items(name, entry), settings, folder / name)
        metrics = found.pop("metrics")
        results[name] = found | {metric: row["value"] for metric, row in metrics.items()}
        results[name]["stderr"] = {metric: row["stderr"] for metric, row in metrics.items()}
        results[name]["intervals"] = {m: [row["low"], row["high"]] for m, row in metrics.items() if "low" in row}
    return results


def metric_paths(options: EvaluationOptions) -> list[str]:
    """benchmarks.NAME.METRIC of every number that is measured."""
    entries = options.benchmarks.items()
    tasks = {name: TASKS[_task(name, entry)] for name, entry in entries if _task(name, entry) in TASKS}
    return [
        f"benchmarks.{name}.{metric}"
        for name, task in tasks.items()
        for metric in benchmark.metrics_of(task, options.benchmarks[name].samples)
    ]


def _task(name: str, entry: BenchmarkOptions) -> str:
    return entry.task or name


def _settings(entry: BenchmarkOptions, options: EvaluationOptions, seed: int) -> BenchmarkSettings:
    asked = {field.name: getattr(entry, field.name) for field in dataclasses.fields(AskOptions)}
    return BenchmarkSettings(**asked, batch_size=options.batch_size, seed=seed)


def _items(name: str, entry: BenchmarkOptions) -> list:
    return _questions(name, entry)[0]


def _questions(name: str, entry: BenchmarkOptions) -> tuple[list, str]:
    """The questions of an entry, and their hash."""
    path = Path(entry.path)
    beside = sorted(path.rglob("*") if path.is_dir() else path.parent.glob("*"))
    found = ((place, place.stat()) for place in beside if place.is_file())
    state = tuple((str(place), stat.st_size, stat.st_mtime_ns) for place, stat in found)
    return _read(_task(name, entry), path, entry.shots, entry.limit, entry.samples, state)


@functools.lru_cache(maxsize=32)
def _read(task: str, path: Path, shots: int | None, limit: int | None, samples: int, state: tuple) -> tuple[list, str]:
    """Read once as long as the files (worked examples stand beside the questions) keep their sizes and times."""
    items = benchmark.items_of(task, path, BenchmarkSettings(shots=shots, limit=limit, samples=samples))
    return items, files.sha256_json([dataclasses.asdict(item) for item in items])
