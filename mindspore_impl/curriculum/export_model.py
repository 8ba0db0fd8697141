"""An export package from a model that a person names by a path."""

from pathlib import Path

from mindspore_impl import runtime
from mindspore_impl.curriculum.open_model import load_model, named, open_weights
from mindspore_impl.errors import UserError
from mindspore_impl.export.options import ExportOptions


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
