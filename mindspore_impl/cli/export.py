"""Export a model to a MindIR package, or write a package's graphs with their weights inside."""

import argparse
from dataclasses import fields
from pathlib import Path

from mindspore_impl import runtime
from mindspore_impl.cli.command import add_tokenizer_options, command, make_parser
from mindspore_impl.curriculum.resolve import load_model, open_tokenizer, resolve_model_path
from mindspore_impl.errors import UserError
from mindspore_impl.export.options import PRECISIONS, ExportOptions


@command
def main(arguments: list[str]) -> None:
    """Make a MindIR package, or full graphs from one."""
    parser = make_parser(
        "Export a model to a package of MindIR graphs for a board, with a parity report; or, with the words "
        "`materialise PACKAGE OUT`, write a package's graphs with their weights inside, for converter_lite.",
        "python tools/export.py --model outputs/quickstart --output outputs/board --precision fp16",
        "python tools/export.py materialise outputs/board outputs/board_full",
    )
    if arguments[:1] == ["materialise"]:
        parser.add_argument("word", choices=["materialise"])
        parser.add_argument("package", type=Path)
        parser.add_argument("out", type=Path, help="a new folder for the full graphs")
        options = parser.parse_args(arguments)
        from mindspore_impl.export.package import materialise

        print(*materialise(options.package, options.out), sep="\n")
        return
    defaults = ExportOptions()
    parser.add_argument("--model", type=Path, required=True, help="a run, its stage, a checkpoint or a HF folder")
    parser.add_argument("--output", type=Path, required=True, help="the package, a folder")
    parser.add_argument("--precision", choices=PRECISIONS, default=defaults.precision)
    parser.add_argument("--cache-length", type=int, default=defaults.cache_length, help="tokens of prompt and answer")
    parser.add_argument("--buckets", type=_numbers, default=defaults.buckets, metavar="N,N", help="prompt lengths")
    parser.add_argument("--target-soc", default=defaults.target_soc, help="noted in the manifest (default %(default)s)")
    parser.add_argument(
        "--compare", type=_precisions, default=defaults.compare, metavar="P,P", help="in the report too"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line (default: the bundled task's)")
    parser.add_argument("--parity-prompts", type=int, default=defaults.parity_prompts)
    parser.add_argument("--parity-tokens", type=int, default=defaults.parity_tokens)
    add_tokenizer_options(parser)
    options = parser.parse_args(arguments)
    _export(options, ExportOptions(**{field.name: getattr(options, field.name) for field in fields(ExportOptions)}))
    print(options.output)


def _precisions(text: str) -> list[str]:
    words = [word for word in text.split(",") if word]
    if foreign := set(words) - set(PRECISIONS):
        raise argparse.ArgumentTypeError(f"{sorted(foreign)[0]!r} is not a precision; use {', '.join(PRECISIONS)}")
    return words


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers with commas between") from error


def _export(options: argparse.Namespace, settings: ExportOptions) -> None:
    from mindspore_impl.export.build import default_prompts, export_package
    from mindspore_impl.model.weights import identity

    found = resolve_model_path(options.model)
    tokenizer = open_tokenizer(options.model, found, options.tokenizer, options.template)
    if options.prompts:
        prompts = _prompts(options.prompts, tokenizer, settings.parity_prompts)
    else:
        prompts = default_prompts(tokenizer, settings.parity_prompts)
    runtime.setup(runtime.RuntimeOptions())
    loaded, source = load_model(found, tokenizer)
    model, digest = [loaded], identity(source)  # popped below, so that the export can free it
    del loaded
    export_package(options.output, model[0].options, lambda: (model.pop(), digest), tokenizer, prompts, settings)


def _prompts(path: Path, tokenizer, count: int) -> list[list[int]]:
    """The first `count` lines of a text file, rendered as user turns in fast thinking mode."""
    from mindspore_impl.text.chat import render_prompt
    from mindspore_impl.text.records import Message, text_lines

    lines = [line.strip() for _, line in text_lines(path) if line.strip()]
    if not lines:
        raise UserError(f"{path}: holds no prompt; write one per line")
    return [render_prompt([Message("user", line)], tokenizer, "fast") for line in lines[:count]]
