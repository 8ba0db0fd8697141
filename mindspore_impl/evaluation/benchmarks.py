"""Benchmarks named in `EvaluationOptions.benchmarks`: validate, fingerprint and measure every entry."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation import benchmark
from mindspore_impl.evaluation.backend import Backend
from mindspore_impl.evaluation.benchmark import Benchmark, BenchmarkSettings
from mindspore_impl.evaluation.options import AskOptions, BenchmarkOptions, EvaluationOptions
from mindspore_impl.evaluation.tasks import TASKS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # valid as a folder and as a word in sweep.metric


def problems(key: str, options: EvaluationOptions) -> Iterator[str]:
    """Yield every reason why an entry of the options at `key` cannot be measured. Needs no model."""
    for name, entry in options.benchmarks.items():
        where = f"{key}.benchmarks.{name}"
        if not _NAME.fullmatch(name):
            yield f"{where}: {name!r} is not a valid benchmark name; use letters, digits, _ and -"
        elif not entry.path:
            yield f"{where}.path: missing; give the published file or folder"
        else:
            try:
                opened, _ = _open(name, entry, options)
                benchmark.check_settings(opened.settings, f"{where}.{{}}".format)
            except UserError as error:
                yield f"{where}: {error}".replace(f"{where}: {where}", where)


def content(options: EvaluationOptions) -> list:
    """What decides the results, for a stage's fingerprint. The questions stand for the files, wherever they are."""
    found = []
    for name, entry in options.benchmarks.items():
        opened, questions = _open(name, entry, options)
        shaping = dataclasses.asdict(entry) | dict.fromkeys(("path", "shots", "limit"))  # in the questions
        found.append([name, shaping | {"task": opened.name, "questions": questions}])
    return found


def check_lengths(key: str, options: EvaluationOptions, tokenizer, limit: int) -> None:
    """Refuse questions too long for `limit` positions. Raises UserError that names the entry below `key`."""
    for name, entry in options.benchmarks.items():
        try:
            benchmark.check_lengths(_open(name, entry, options)[0], tokenizer, limit)
        except UserError as error:
            raise UserError(f"{key}.benchmarks.{name}: {error}") from error


def measure(backend: Backend, options: EvaluationOptions, folder: Path, seed: int) -> dict[str, dict]:
    """Measure a model on every entry. Every rank must call this.

    `folder` gets NAME/samples.jsonl of each entry, and resumable parts; seed: of completions at a temperature above 0.
    Returns {NAME: {"total", "truncated", "seconds", METRIC: the mean..., "stderr": {METRIC}, "intervals": {METRIC:
    [low, high]} (95 % Wilson, where every score is 0 or 1), "groups": {GROUP: {"total", METRIC...}}}}.
    """
    results = {}
    for name, entry in options.benchmarks.items():
        found = benchmark.run(backend, _open(name, entry, options, seed)[0], folder / name)
        metrics = found.pop("metrics")
        results[name] = found | {metric: row["value"] for metric, row in metrics.items()}
        results[name]["stderr"] = {metric: row["stderr"] for metric, row in metrics.items()}
        results[name]["intervals"] = {m: [row["low"], row["high"]] for m, row in metrics.items() if "low" in row}
    return results


def metric_paths(options: EvaluationOptions) -> list[str]:
    """benchmarks.NAME.METRIC of every number that is measured."""
    return [
        f"benchmarks.{name}.{metric}"
        for name, entry in options.benchmarks.items()
        if (task := TASKS.get(entry.task or name))
        for metric in benchmark.metrics_of(task, entry.samples)
    ]


def _open(name: str, entry: BenchmarkOptions, options: EvaluationOptions, seed: int = 0) -> tuple[Benchmark, str]:
    """The benchmark of an entry, and the hash of its questions."""
    asked = {field.name: getattr(entry, field.name) for field in dataclasses.fields(AskOptions)}
    settings = BenchmarkSettings(**asked, batch_size=options.batch_size, seed=seed)
    task, path = entry.task or name, Path(entry.path)
    beside = sorted(path.rglob("*") if path.is_dir() else path.parent.glob("*"))  # worked examples may be there
    found = ((place, place.stat()) for place in beside if place.is_file())
    state = tuple((str(place), stat.st_size, stat.st_mtime_ns) for place, stat in found)
    items, sha256 = _read(task, path, entry.shots, entry.limit, entry.samples, state)
    return Benchmark(task, items, settings), sha256


@functools.lru_cache(maxsize=32)
def _read(task: str, path: Path, shots: int | None, limit: int | None, samples: int, state: tuple) -> tuple:
    """Read once while size and time of every file (`state`) stay the same."""
    items = benchmark.read_benchmark(task, path, BenchmarkSettings(shots=shots, limit=limit, samples=samples)).items
    return items, files.sha256_json([dataclasses.asdict(item) for item in items])
