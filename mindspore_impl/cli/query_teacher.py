"""Query a teacher or student on a server, and import its answers as a teacher store or a rollout file.

MindSpore is imported only where a run's stage is read, so that --help is quick.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.cli.command import add_plugins_option, add_tokenizer_options, command, make_parser
from mindspore_impl.errors import UserError


@command
def main(arguments: list[str]) -> None:
    """Ask a server what a stage or a file needs, and import the answers."""
    options = _parse(arguments)
    job = _job(options)
    if not options.url and not options.answers:
        raise UserError("name a server (--url http://HOST:PORT/v1) or files of earlier answers (--answers FILE)")
    folder = job.folder
    server = _server(options) if options.url else None
    paths = [*options.answers, *([folder / "answers.jsonl"] if server else [])]
    from mindspore_impl.distill.jobs import CaptureJob

    topk = isinstance(job, CaptureJob)
    summary = (_import_topk if topk else _import_rollouts)(job, server, paths, options)
    files.write_json(folder / "imported.json", files.jsonable(summary))
    for key, value in summary.items():
        print(f"{key}: {value}")
    print(f"use it: stages.NAME.{f'store={folder}/store' if topk else f'rollouts={folder}/rollouts.jsonl'}")


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
    who.add_argument(
        "--answers", nargs="+", type=Path, default=[], metavar="FILE", help="also import vLLM's JSONL files"
    )
    who.add_argument("--model", default="", metavar="NAME", help="as the server calls it (default: its only one)")
    who.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the server's key")
    who.add_argument("--in-flight", type=int, default=16, metavar="N", help="concurrent requests (default 16)")
    who.add_argument("--timeout", type=float, default=300.0, metavar="S", help="of one request (default 300)")
    who.add_argument("--retries", type=int, default=6, metavar="N", help="of a question (default 6)")
    who.add_argument("--allow-missing", type=int, default=0, metavar="N", help="prompts of rollouts without an answer")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: RUN/external/STAGE, or FILE.external")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of waits (default 0)")
    return parser.parse_args(arguments)


def _job(options: argparse.Namespace):
    """The CaptureJob or RolloutJob that is asked of the server.

    Raises UserError unless exactly one source is named that a server can answer.
    """
    sources = [options.run, options.records, options.rollouts]
    if sum(source is not None for source in sources) != 1 or (options.run is None) != (options.stage is None):
        raise UserError("name one source: --run DIR --stage NAME, or --records FILE, or --rollouts FILE")
    if options.run is None and options.tokenizer is None:
        raise UserError("--tokenizer: name the tokenizer of the server's model; every id depends on it")
    job, weights = (_of_file if options.run is None else _of_stage)(options), None
    if options.weights is not None:
        from mindspore_impl.curriculum.resolve import open_weights
        from mindspore_impl.curriculum.stages.inputs import check_weights_tokenizer, file_hash
        from mindspore_impl.model.weights import identity

        source = open_weights(options.weights)
        check_weights_tokenizer(source, options.weights, job.tokenizer)
        weights = identity(source, file_hash)
    return replace(job, weights_sha256=weights)


def _of_stage(options: argparse.Namespace):
    from mindspore_impl.curriculum.runner import open_run
    from mindspore_impl.curriculum.stages.capture import CaptureStage
    from mindspore_impl.curriculum.stages.rollout import RolloutStage
    from mindspore_impl.distill.jobs import CaptureJob, RolloutJob
    from mindspore_impl.schema import nearest

    context, name = open_run(options.run, options.plugins), options.stage
    stage = context.config.stages.get(name)  # it may be absent from `order`, where an external teacher replaces it
    if not isinstance(stage, CaptureStage | RolloutStage):
        known = [n for n, s in context.config.stages.items() if isinstance(s, CaptureStage | RolloutStage)]
        raise UserError(f"--stage: {name!r} is no capture or rollout stage of {options.run}{nearest(name, known)}")
    if isinstance(stage, CaptureStage) and stage.capture.mode != "top_k":
        raise UserError(f"stages.{name}.capture.mode: {stage.capture.mode} cannot be asked of a server; use top_k")
    seed = context.config.seed if stage.seed is None else stage.seed
    request = stage.request(context) | {"folder": options.output or options.run / "external" / name, "seed": seed}
    request["key"] = f"stages.{name}."
    if isinstance(stage, RolloutStage):
        return RolloutJob(**request)
    job = CaptureJob(**request)
    return replace(job, samples=job.fitting())


def _of_file(options: argparse.Namespace):
    from mindspore_impl.data.options import FileSet
    from mindspore_impl.data.rollouts import read_rollouts, refuse_copies, to_sample
    from mindspore_impl.data.sources import load_set
    from mindspore_impl.distill.jobs import CaptureJob, RolloutJob
    from mindspore_impl.distill.options import CaptureOptions, RolloutOptions
    from mindspore_impl.generation.options import SamplingOptions
    from mindspore_impl.text.chat import samples_of
    from mindspore_impl.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(options.tokenizer, options.template)
    folder = options.output or (options.records or options.rollouts).with_suffix(".external")
    if options.rollouts is not None:
        samples = [to_sample(item, tokenizer) for item in read_rollouts(options.rollouts, tokenizer, True)]
    else:
        records = load_set(options.records.name, FileSet(source="records", path=str(options.records)), options.seed)
        if options.ask == "rollouts":
            keys = "--samples-per-prompt", "--temperature"
            refuse_copies(options.samples_per_prompt, options.temperature, 0, *keys)
            sampling = SamplingOptions(options.temperature, options.top_p, max_new_tokens=options.max_new_tokens)
            repeats = RolloutOptions(samples_per_prompt=options.samples_per_prompt)
            return RolloutJob(tokenizer, records, repeats, sampling, folder, options.seed)
        samples = samples_of(records, tokenizer)
    return CaptureJob(tokenizer, samples, CaptureOptions("top_k", options.top_k, options.temperature), folder)


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


def _import_topk(job, server, paths: list[Path], options: argparse.Namespace) -> dict:
    from mindspore_impl.integrations.vllm import asking
    from mindspore_impl.integrations.vllm.topk import external_header, import_topk

    name, tokenizer, top_k = server.model if server else options.model, job.tokenizer, job.options.top_k
    if not name and not job.weights_sha256:
        raise UserError("--model: name the teacher that gave the answers, or its --weights; the store keeps a hash")
    teacher = job.weights_sha256 or files.sha256_json(["a teacher known by name alone", name])
    header = external_header(teacher, tokenizer.sha256, tokenizer.vocab_size, top_k, job.options.temperature)
    if server:
        asking.ask_topk(server, job.samples, header, paths[-1])
    return import_topk(paths, job.samples, header, job.folder / "store")


def _import_rollouts(job, server, paths: list[Path], options: argparse.Namespace) -> dict:
    from mindspore_impl.distill.rollout import prompts_of
    from mindspore_impl.integrations.vllm import asking
    from mindspore_impl.integrations.vllm.rollouts import import_rollouts

    prompts = prompts_of(job.records, job.tokenizer, job.options.samples_per_prompt, job.seed)
    if server:
        asking.ask_rollouts(server, prompts, job.sampling, job.tokenizer, paths[-1], options.allow_missing)
    path = job.folder / "rollouts.jsonl"
    return import_rollouts(paths, prompts, job.sampling, job.tokenizer, path, job.weights_sha256, options.allow_missing)
