"""Query a teacher or student on a server, and import its answers as a teacher store or a rollout file.

MindSpore is imported only where a run's stage is read, so that --help is quick.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.cli.command import add_plugins_option, add_tokenizer_options, command, make_parser
from mindspore_impl.errors import UserError


@command
def main(arguments: list[str]) -> None:
    """Ask a server what a stage or a file needs, and import the answers."""
    options = _parse(arguments)
    ask, folder = _questions(options)
    if not options.url and not options.answers:
        raise UserError("name a server (--url http://HOST:PORT/v1) or files of earlier answers (--answers FILE)")
    options.output = options.output or folder
    server = _server(options) if options.url else None
    if server:
        options.answers.append(options.output / "answers.jsonl")
    summary, use = ask(server, options)
    files.write_json(options.output / "imported.json", files.jsonable(summary))
    for key, value in summary.items():
        print(f"{key}: {value}")
    print(f"use it: stages.NAME.{use}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser(
        "Ask a vLLM (or vLLM-Ascend) server for a teacher's top-k along given sequences, or for answers to prompts,\n"
        "and import them as a teacher store or a rollout file. The same command asks again only for what is missing.",
        "python tools/query_teacher.py --run outputs/quickstart --stage capture_fast --url http://localhost:8000/v1",
    )
    what = parser.add_argument_group("what is asked: a stage of a run, or a file")
    what.add_argument("--run", type=Path, metavar="DIR", help="a run directory; its earlier stages must be done")
    what.add_argument("--stage", metavar="NAME", help="its capture stage (asks top-k) or rollout stage")
    add_plugins_option(what)
    what.add_argument("--records", type=Path, metavar="FILE", help="record file: top-k of its labels, or its prompts")
    what.add_argument("--rollouts", type=Path, metavar="FILE", help="rollout file: top-k of its answers")
    what.add_argument("--ask", choices=("top_k", "rollouts"), default="top_k", help="of --records (default top_k)")
    add_tokenizer_options(what, "of the server's model, for a file", "by the kind of tokenizer")
    what.add_argument("--weights", type=Path, metavar="PATH", help="the server's weights, for their hash (optional)")
    own = parser.add_argument_group("settings for a file (a stage has its own)")
    own.add_argument("--top-k", type=int, default=10, metavar="K")
    own.add_argument("--samples-per-prompt", type=int, default=1, metavar="N")
    own.add_argument("--temperature", type=float, default=1.0)
    own.add_argument("--top-p", type=float, default=1.0)
    own.add_argument("--max-new-tokens", type=int, default=512)
    who = parser.add_argument_group("server")
    who.add_argument("--url", help="API of an OpenAI-compatible server that gives prompt_logprobs, http://HOST:PORT/v1")
    who.add_argument("--answers", nargs="+", type=Path, default=[], metavar="FILE",
                     help="also import JSONL that vLLM's batch runner or an offline script wrote")  # fmt: skip
    who.add_argument("--model", default="", metavar="NAME", help="as the server calls it (default: its only one)")
    who.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the server's key")
    who.add_argument("--in-flight", type=int, default=16, metavar="N", help="concurrent requests (default 16)")
    who.add_argument("--timeout", type=float, default=300.0, metavar="S", help="of one request (default 300)")
    who.add_argument("--retries", type=int, default=6, metavar="N", help="of a question (default 6)")
    who.add_argument("--allow-missing", type=int, default=0, metavar="N",
                     help="rollouts: prompts that may stay unanswered (default 0)")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: RUN/external/STAGE, or FILE.external")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of waits (default 0)")
    return parser.parse_args(arguments)


def _questions(options: argparse.Namespace) -> tuple[Callable, Path]:
    """-> what asks a server and imports: (server, options) -> (summary, how a stage uses it); and the default output.

    Raises UserError unless exactly one source is named that a server can answer.
    """
    sources = [options.run, options.records, options.rollouts]
    if sum(source is not None for source in sources) != 1 or (options.run is None) != (options.stage is None):
        raise UserError("name one source: --run DIR --stage NAME, or --records FILE, or --rollouts FILE")
    weights = None if options.weights is None else _hash_of(options.weights)
    if options.run is not None:
        return _of_stage(options.run, options.stage, weights, options.plugins), options.run / "external" / options.stage
    if options.tokenizer is None:
        raise UserError("--tokenizer: name the tokenizer of the server's model; every id depends on it")
    return _of_file(options, weights), (options.records or options.rollouts).with_suffix(".external")


def _hash_of(path: Path) -> str:
    from mindspore_impl.curriculum.resolve import open_weights
    from mindspore_impl.curriculum.stages.inputs import file_hash
    from mindspore_impl.model.weights import identity

    return identity(open_weights(path), file_hash)


def _of_stage(run_dir: Path, name: str, weights: str | None, plugins: list[str]) -> Callable:
    from mindspore_impl.curriculum.runner import open_run
    from mindspore_impl.curriculum.stages.capture import CaptureStage
    from mindspore_impl.curriculum.stages.rollout import RolloutStage
    from mindspore_impl.distill.capture import fitting
    from mindspore_impl.schema import nearest

    context = open_run(run_dir, plugins)
    stage = context.config.stages.get(name)  # it may be absent from `order`, where an external teacher replaces it
    if not isinstance(stage, CaptureStage | RolloutStage):
        fitting = [n for n, s in context.config.stages.items() if isinstance(s, CaptureStage | RolloutStage)]
        raise UserError(f"--stage: {name!r} is no capture or rollout stage of {run_dir}{nearest(name, fitting)}")
    if isinstance(stage, RolloutStage):
        seed = context.config.seed if stage.seed is None else stage.seed
        wanted = (context.tokenizer, stage.records(context), stage.rollout.samples_per_prompt, stage.sampling, seed)
        return partial(_rollouts, *wanted, weights)
    if stage.capture.mode != "top_k":
        raise UserError(f"stages.{name}.capture.mode: {stage.capture.mode} cannot be asked of a server; use top_k")
    samples, length = stage.samples(context), stage.sequence_length
    if stage.capture.overlong == "drop":
        samples = fitting(samples, length)
    elif over := next((sample for sample in samples if len(sample.ids) > length), None):
        raise UserError(
            f"record {over.record_id!r} has {len(over.ids)} tokens, more than stages.{name}.sequence_length {length}; "
            f"raise it, or choose stages.{name}.capture.overlong=drop"
        )
    return partial(_topk, context.tokenizer, samples, stage.capture.top_k, stage.capture.temperature, weights)


def _of_file(options: argparse.Namespace, weights: str | None) -> Callable:
    from mindspore_impl.data.options import DatasetOptions
    from mindspore_impl.data.rollouts import read_rollouts, to_sample
    from mindspore_impl.data.sources import load_set
    from mindspore_impl.generation.options import SamplingOptions
    from mindspore_impl.text.chat import render
    from mindspore_impl.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(options.tokenizer, options.template)
    if options.rollouts is not None:
        samples = [to_sample(item, tokenizer) for item in read_rollouts(options.rollouts, tokenizer, True)]
    else:
        records = load_set("records", DatasetOptions(source="records", path=str(options.records)), options.seed)
        if options.ask == "rollouts":
            sampling = SamplingOptions(options.temperature, options.top_p, max_new_tokens=options.max_new_tokens)
            return partial(_rollouts, tokenizer, records, options.samples_per_prompt, sampling, options.seed, weights)
        samples = [render(record, tokenizer) for record in records]
    return partial(_topk, tokenizer, samples, options.top_k, options.temperature, weights)


def _server(options: argparse.Namespace):
    from mindspore_impl.integrations.vllm.client import Server, check_url, resolve_model

    key, name = None, options.api_key_env
    if name:
        key = os.environ.get(name, "").strip()
        if not key:
            raise UserError(f"--api-key-env: the environment has no {name}; export it first")
        if not (key.isascii() and key.isprintable()):  # http.client would show it in its message
            raise UserError(
                f"--api-key-env: {name} holds a line end, a control character or one that is not ASCII; export the key "
                "alone"
            )
    if options.in_flight < 1 or options.retries < 0 or not 0 < options.timeout < float("inf"):
        raise UserError("--in-flight must be 1 or more, --retries 0 or more and --timeout above 0")
    url = check_url(options.url)
    return resolve_model(Server(url, options.model, key, options.timeout, options.in_flight, options.retries,
                                seed=options.seed), 1)  # fmt: skip


def _topk(tokenizer, samples, top_k, temperature, weights, server, options: argparse.Namespace) -> tuple[dict, str]:
    """Ask for the top K along `samples` and make a teacher store. weights: the teacher's SHA-256, where known."""
    from mindspore_impl.integrations.vllm import asking
    from mindspore_impl.integrations.vllm.topk import external_header, import_topk

    name, store = server.model if server else options.model, options.output / "store"
    if not name and not weights:
        raise UserError("--model: name the teacher that gave the answers, or its --weights; the store keeps a hash")
    teacher = weights or files.sha256_json(["a teacher known by name alone", name])
    header = external_header(teacher, tokenizer.sha256, tokenizer.vocab_size, top_k, temperature)
    if server:
        asking.ask_topk(server, samples, header, options.answers[-1])
    return import_topk(options.answers, samples, header, store), f"store={store}"


def _rollouts(
    tokenizer, records, repeats, sampling, seed, weights, server, options: argparse.Namespace
) -> tuple[dict, str]:
    """Ask for `repeats` answers to the prompts of `records` and make a rollout file."""
    from mindspore_impl.distill.rollout import prompts_of
    from mindspore_impl.integrations.vllm import asking
    from mindspore_impl.integrations.vllm.rollouts import import_rollouts

    prompts, path = prompts_of(records, tokenizer, repeats, seed), options.output / "rollouts.jsonl"
    if server:
        asking.ask_rollouts(server, prompts, sampling, tokenizer, options.answers[-1], options.allow_missing)
    found = import_rollouts(options.answers, prompts, sampling, tokenizer, path, weights, options.allow_missing)
    return found, f"rollouts={path}"
