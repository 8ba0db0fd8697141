"""Export a model to a MindIR package, or write a package's graphs with their weights inside."""

import argparse
from pathlib import Path

from mindspore_impl import runtime
from mindspore_impl.cli.command import add_tokenizer_options, command, make_parser
from mindspore_impl.curriculum.resolve import load_model, open_tokenizer, open_weights, resolve_model_path
from mindspore_impl.errors import UserError
from mindspore_impl.export.options import ExportOptions


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
    _add_options(parser)
    options = parser.parse_args(arguments)
    settings = ExportOptions(
        options.precision, options.cache_length, options.buckets, options.target_soc, options.compare,
        options.parity_prompts, options.parity_tokens,
    )  # fmt: skip
    export_model(options.model, options.output, settings, options.tokenizer, options.template, options.prompts)
    print(options.output)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="a run, its stage, a checkpoint or a HF folder")
    parser.add_argument("--output", type=Path, required=True, help="the package, a folder")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp16")
    parser.add_argument("--cache-length", type=int, default=1024, help="tokens of prompt and answer (default 1024)")
    parser.add_argument("--buckets", type=_numbers, default=[64, 256], metavar="N,N",
                        help="prompt lengths, a graph each (default 64,256)")  # fmt: skip
    parser.add_argument("--target-soc", default="Ascend310B", help="noted in the manifest (default Ascend310B)")
    parser.add_argument("--compare", type=_precisions, default=["fp32", "fp16", "int8"], metavar="P,P",
                        help="further precisions in the parity report (default: all; '' for none)")  # fmt: skip
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line (default: the bundled task's)")
    parser.add_argument("--parity-prompts", type=int, default=4)
    parser.add_argument("--parity-tokens", type=int, default=64)
    add_tokenizer_options(parser)


def _precisions(text: str) -> list[str]:
    """Precisions from "fp32,int8"."""
    words = [word for word in text.split(",") if word]
    if foreign := set(words) - {"fp32", "fp16", "int8"}:
        raise argparse.ArgumentTypeError(f"{sorted(foreign)[0]!r} is not a precision; use fp32, fp16, int8")
    return words


def _numbers(text: str) -> list[int]:
    """Whole numbers from "64,256"."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers with commas between") from error


def export_model(
    path: Path, target: Path, options: ExportOptions, tokenizer_path: Path | None, template: str | None,
    prompts_path: Path | None,
) -> dict:  # fmt: skip
    """Export the model at `path` to the package `target`; return its parity report.

    Args:
        path: as for `resolve_model_path`.
        target: folder of the package.
        options: precision, sizes and parity settings.
        tokenizer_path: a tokenizer file; None for the one beside the model.
        template: a chat template; None for that of the run or tokenizer.
        prompts_path: text file for the parity report, a prompt a line; None for the bundled task's prompts.

    Raises UserError when there is no model or tokenizer, they do not fit, or an option is out of range.
    """
    from mindspore_impl.export.build import default_prompts, export_package
    from mindspore_impl.model.weights import identity

    found = resolve_model_path(path)
    tokenizer = open_tokenizer(path, found, tokenizer_path, template)
    prompts = _prompts(prompts_path, tokenizer, options.parity_prompts) if prompts_path else None
    runtime.setup(runtime.RuntimeOptions())
    model = [load_model(found, tokenizer.vocab_size)]  # popped below, so that the export can free it
    digest = identity(open_weights(found.weights, found.which))
    return export_package(
        target,
        model[0].options,
        lambda: (model.pop(), digest),
        tokenizer,
        prompts or default_prompts(tokenizer, options.parity_prompts),
        options,
    )


def _prompts(path: Path, tokenizer, count: int) -> list[list[int]]:
    """The first `count` lines of a text file, rendered as user turns in fast thinking mode."""
    from mindspore_impl.text.chat import render_prompt
    from mindspore_impl.text.records import Message

    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if not lines:
        raise UserError(f"{path}: holds no prompt; write one per line")
    return [render_prompt([Message("user", line)], tokenizer, "fast") for line in lines[:count]]
