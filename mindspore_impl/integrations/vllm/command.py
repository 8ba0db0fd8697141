"""`tools/query_teacher.py` as far as servers and answer files go. Free of MindSpore until it runs, so that --help is
quick."""

import argparse
import os
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say who is asked, and where the answers go."""
    who = parser.add_argument_group("who is asked")
    who.add_argument("--url", help="API of an OpenAI-compatible server that gives prompt_logprobs, http://HOST:PORT/v1")
    who.add_argument("--answers", nargs="+", type=Path, default=[], metavar="FILE",
                     help="JSONL that vLLM's batch runner or an offline script wrote: imported, too")  # fmt: skip
    who.add_argument("--model", default="", metavar="NAME", help="as the server calls it (default: its only one)")
    who.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the server's key")
    who.add_argument("--in-flight", type=int, default=16, metavar="N", help="requests at once (default 16)")
    who.add_argument("--timeout", type=float, default=300.0, metavar="S", help="of one request (default 300)")
    who.add_argument("--retries", type=int, default=6, metavar="N", help="further tries of a question (default 6)")
    who.add_argument("--allow-missing", type=int, default=0, metavar="N",
                     help="rollouts: prompts that may stay unanswered (default 0)")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: RUN/external/STAGE, or FILE.external")


def run(questions, folder: Path, options: argparse.Namespace) -> None:
    """Ask `questions` (of distill/external.py), import the answers into `folder`, and say what came of them.

    Raises UserError when nobody is named to ask, or too much stays unanswered.
    """
    from mindspore_impl.distill.external import TopkQuestions

    if not options.url and not options.answers:
        raise UserError("say who is asked: --url http://HOST:PORT/v1, or --answers FILE for what was answered already")
    folder = options.output or folder
    server = None if not options.url else _server(options)
    paths = [*options.answers, *([folder / "answers.jsonl"] if server else [])]
    topk = isinstance(questions, TopkQuestions)
    summary = (_topk if topk else _rollouts)(questions, server, paths, folder, options)
    files.write_json(folder / "imported.json", files.jsonable(summary))
    for key, value in summary.items():
        print(f"{key}: {value}")
    print(f"use it: stages.NAME.{f'store={folder}/store' if topk else f'rollouts={folder}/rollouts.jsonl'}")


def _server(options: argparse.Namespace):
    from mindspore_impl.integrations.vllm.client import Server, check_url, named

    key = _key(options.api_key_env) if options.api_key_env else None
    if options.in_flight < 1 or options.retries < 0 or not 0 < options.timeout < float("inf"):
        raise UserError("--in-flight must be 1 or more, --retries 0 or more and --timeout above 0")
    url = check_url(options.url)
    return named(Server(url, options.model, key, options.timeout, options.in_flight, options.retries,
                        seed=options.seed), 1)  # fmt: skip


def _key(name: str) -> str:
    """The server's key from the environment. What no header can carry is refused here: http.client's own message
    would show it."""
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"--api-key-env: the environment has no {name}; export it first")
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"--api-key-env: {name} holds a line end, a control character or one that is not ASCII, as no key does; "
            "export the key alone"
        )
    return key


def _topk(questions, server, paths: list[Path], folder: Path, options: argparse.Namespace) -> dict:
    from mindspore_impl.integrations.vllm import asking
    from mindspore_impl.integrations.vllm.topk import external_header, import_topk

    name, tokenizer = server.model if server else options.model, questions.tokenizer
    if not name and not questions.weights_sha256:
        raise UserError("--model: name the teacher that gave the answers, or its --weights; the store keeps a hash")
    teacher = questions.weights_sha256 or files.sha256_json(["a teacher known by name alone", name])
    header = external_header(teacher, tokenizer.sha256, tokenizer.vocab_size, questions.top_k, questions.temperature)
    if server:
        asking.ask_topk(server, questions.samples, header, paths[-1])
    return import_topk(paths, questions.samples, header, folder / "store")


def _rollouts(questions, server, paths: list[Path], folder: Path, options: argparse.Namespace) -> dict:
    from mindspore_impl.distill.rollout import prompts_of
    from mindspore_impl.integrations.vllm import asking
    from mindspore_impl.integrations.vllm.rollouts import import_rollouts

    tokenizer, sampling = questions.tokenizer, questions.sampling
    prompts = prompts_of(questions.records, tokenizer, questions.options.samples_per_prompt, questions.seed)
    if server:
        asking.ask_rollouts(server, prompts, sampling, tokenizer, paths[-1], options.allow_missing)
    path = folder / "rollouts.jsonl"
    return import_rollouts(paths, prompts, sampling, tokenizer, path, questions.weights_sha256, options.allow_missing)
