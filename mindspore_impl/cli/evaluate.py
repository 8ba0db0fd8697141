"""Measure a model on benchmarks."""

import argparse
import dataclasses
import math
from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.cli.command import add_tokenizer_options, command, make_parser
from mindspore_impl.curriculum.resolve import load_model, open_tokenizer, resolve_model_path
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation import benchmark
from mindspore_impl.evaluation.backend import Backend, of_decoder, of_model
from mindspore_impl.evaluation.benchmark import BenchmarkSettings, check_settings
from mindspore_impl.evaluation.sandbox.run import Limits
from mindspore_impl.evaluation.tasks import TASKS

CODE_LIMITS = {  # fields of Limits that have an option
    "seconds": "wall clock and, rounded up, CPU time",
    "memory_mb": "address space of each of its processes",
    "file_mb": "largest file; its private folder holds twice as much",
    "processes": "processes and threads",
}


@command
def main(arguments: list[str]) -> None:
    """Run benchmarks on a model."""
    options = _parse(arguments)
    settings = _settings(options)
    if not options.task and not options.harness:
        raise UserError("name a task: --task TASK=PATH or --harness TASK")
    names = [name for name, _ in options.task]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"--task: {sorted(twice)[0]} is named twice")
    asked = {name: benchmark.read_benchmark(name, path, settings) for name, path in options.task}
    backend = _open_backend(options.model, options.tokenizer, options.template, settings.batch_size)
    for one in asked.values():
        benchmark.check_lengths(one, backend.tokenizer, backend.limit)
    results = {"model": str(options.model), "weights_sha256": backend.sha256,
               "settings": dataclasses.asdict(settings), "tasks": {}}  # fmt: skip
    for name, one in asked.items():
        results["tasks"][name] = benchmark.run(backend, one, options.output / name)
        _print_result(name, results["tasks"][name])
    if options.harness:
        from mindspore_impl.integrations.lm_eval import run_harness

        results["harness"] = run_harness(backend, options.harness, settings, options.output / "harness")
    files.write_json(options.output / "results.json", files.jsonable(results))
    print(options.output / "results.json")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser(
        "Run benchmarks on a model: MMLU, GSM8K and others from their published files, or any task of\n"
        "lm-evaluation-harness. The same command continues where it was interrupted.",
        "python tools/evaluate.py --model outputs/quickstart --task gsm8k=test.jsonl --shots 0 --output outputs/gsm8k",
        "python tools/evaluate.py --model DIR/hf --task mmlu=DIR/data ceval=DIR/ceval --output outputs/choices",
        "python tools/evaluate.py --model DIR/hf --task mbpp=mbpp.jsonl --samples 10 --temperature 0.8 --output "
        "outputs/code",
        "python tools/evaluate.py --model DIR/hf --harness arc_easy hellaswag --limit 200 --output outputs/harness",
    )
    parser.add_argument("--model", type=Path, required=True, help="a run, stage, checkpoint, HF folder or package")
    parser.add_argument("--task", nargs="+", default=[], type=_task, metavar="TASK=PATH", help=", ".join(TASKS))
    parser.add_argument(
        "--harness", nargs="+", default=[], metavar="TASK", help="of lm-evaluation-harness (extra: eval)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json and samples.jsonl")
    parser.add_argument("--shots", type=int, help="worked examples (default: the task's own number)")
    parser.add_argument("--limit", type=int, help="questions of each task, the first ones (default: all)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--form", choices=("auto", "chat", "plain"), default="auto", help="plain: as text to continue")
    parser.add_argument("--thinking", choices=("reasoning", "fast"), default="fast")
    parser.add_argument("--max-new-tokens", type=int, help="of a completion (default: the task's own number)")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="answers a question; code: unbiased pass@k")
    parser.add_argument("--temperature", type=float, default=0.0, help="of completions (default: 0, greedy)")
    parser.add_argument("--seed", type=int, default=0)
    limits = parser.add_argument_group("limits of an answer that is a program (one a core runs at a time)")
    for name, what in CODE_LIMITS.items():
        default = getattr(Limits, name)
        flag = f"--code-{name.replace('_', '-')}"
        limits.add_argument(flag, type=type(default), default=default, help=f"{what} (default: {default:g})")
    limits.add_argument("--code-unisolated", action="store_true", help="run programs also where nothing contains them")
    add_tokenizer_options(parser)
    return parser.parse_args(arguments)


def _task(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: expected TASK=PATH")
    return name, Path(path)


def _settings(options: argparse.Namespace) -> BenchmarkSettings:
    """The settings of the parsed options. Raises UserError for a number out of range."""
    code = {name: getattr(options, f"code_{name}") for name in CODE_LIMITS}
    for name, value in code.items():
        if not 0 < value < math.inf:
            raise UserError(f"--code-{name.replace('_', '-')}: {value} is not above 0")
    more = {"cpu_seconds": math.ceil(options.code_seconds), "disk_mb": 2 * options.code_file_mb}
    limits = Limits(**code, **more, require_isolation=not options.code_unisolated)
    fields = [field.name for field in dataclasses.fields(BenchmarkSettings) if field.name != "limits"]
    settings = BenchmarkSettings(**{name: getattr(options, name) for name in fields}, limits=limits)
    check_settings(settings, lambda name: f"--{name.replace('_', '-')}")
    return settings


def _print_result(name: str, result: dict) -> None:
    """Print the metrics in percent, the first with its interval."""
    texts = [f"{metric} {found['value']:.1%}" for metric, found in result["metrics"].items()]
    first = next(iter(result["metrics"].values()))
    if "low" in first:
        texts[0] += f" ({first['low']:.1%} to {first['high']:.1%})"
    cut = f", {result['truncated']} cut" if result["truncated"] else ""
    print(f"{name}: {', '.join(texts)}, {result['total']} questions{cut}")


def _open_backend(path: Path, tokenizer_path: Path | None, template: str | None, batch_size: int) -> Backend:
    found = resolve_model_path(path)
    tokenizer = open_tokenizer(path, found, tokenizer_path, template)
    runtime.setup(runtime.RuntimeOptions())
    if found.is_package:
        from mindspore_impl.export.session import open_session

        session = open_session(found.weights)
        session.package.check_tokenizer(tokenizer)
        return of_decoder(session, tokenizer, files.sha256_file(found.weights / "manifest.json"))
    from mindspore_impl.model.weights import identity

    model, source = load_model(found, tokenizer)
    return of_model(model, tokenizer, batch_size, identity(source))
