"""An export package from a model that a person names by a path."""

import argparse
from pathlib import Path

from mindspore_impl import runtime
from mindspore_impl.curriculum.resolve import load_model, named, open_weights
from mindspore_impl.errors import UserError
from mindspore_impl.export.options import ExportOptions


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is exported, and how."""
    parser.add_argument("--model", type=Path, required=True, help="a run, its stage, a checkpoint or a HF folder")
    parser.add_argument("--output", type=Path, required=True, help="the package, a folder")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp16")
    parser.add_argument("--cache-length", type=int, default=1024, help="tokens of prompt and answer (default 1024)")
    parser.add_argument("--buckets", type=_numbers, default=[64, 256], metavar="N,N",
                        help="prompt lengths, a graph each (default 64,256)")  # fmt: skip
    parser.add_argument("--target-soc", default="Ascend310B", help="noted in the manifest (default Ascend310B)")
    parser.add_argument("--compare", type=_words, default=["fp32", "fp16", "int8"], metavar="P,P",
                        help="precisions that stand in the parity report too (default: all; '' for none)")  # fmt: skip
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line (default: the bundled task's)")
    parser.add_argument("--parity-prompts", type=int, default=4)
    parser.add_argument("--parity-tokens", type=int, default=64)


def _words(text: str) -> list[str]:
    """Precisions from "fp32,int8"."""
    words = [word for word in text.split(",") if word]
    if foreign := set(words) - {"fp32", "fp16", "int8"}:
        raise argparse.ArgumentTypeError(f"{sorted(foreign)[0]!r} is no precision; use fp32, fp16, int8")
    return words


def _numbers(text: str) -> list[int]:
    """Whole numbers from "64,256"."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers with commas between") from error


def run(options: argparse.Namespace) -> None:
    """Export as the options of `add_options` say."""
    settings = ExportOptions(
        options.precision, options.cache_length, options.buckets, options.target_soc, options.compare,
        options.parity_prompts, options.parity_tokens,
    )  # fmt: skip
    export_model(options.model, options.output, settings, options.tokenizer, options.template, options.prompts)


def export_model(
    path: Path, target: Path, options: ExportOptions, tokenizer_path: Path | None, template: str | None,
    prompts_path: Path | None,
) -> dict:  # fmt: skip
    """Export what `path` stands for (see `open_model.named`) to the package `target`; return its parity report.

    Raises UserError when there is no model or tokenizer, they do not fit, or the options have no meaning.
    """
    from mindspore_impl.export.build import default_prompts, export_package
    from mindspore_impl.model.weights import identity
    from mindspore_impl.text.tokenizer import Tokenizer

    found = named(path)
    if tokenizer_path is None and found.tokenizer is None:
        raise UserError(f"{path}: no tokenizer lies beside these weights; give one with --tokenizer")
    tokenizer = Tokenizer.load(tokenizer_path or found.tokenizer, template or found.template)
    prompts = _prompts(prompts_path, tokenizer, options.parity_prompts) if prompts_path else None
    runtime.setup(runtime.RuntimeOptions())
    model = [load_model(found, tokenizer.vocab_size)]  # taken out below, so that the export can let it go
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
    """The first `count` lines of a text file as user turns, answered fast."""
    from mindspore_impl.text.chat import render_prompt
    from mindspore_impl.text.records import Message

    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if not lines:
        raise UserError(f"{path}: holds no prompt; write one a line")
    return [render_prompt([Message("user", line)], tokenizer, "fast") for line in lines[:count]]
