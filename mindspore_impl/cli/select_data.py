"""Select the records worth training on, or check data files."""

from pathlib import Path

from mindspore_impl.cli.command import add_tokenizer_options, command, make_parser
from mindspore_impl.errors import UserError
from mindspore_impl.schema import nearest
from mindspore_impl.text.records import THINKING


@command
def main(arguments: list[str]) -> int | None:
    """Run a selection recipe; with --check, list the problems of data files and return 1 when there are any."""
    parser = make_parser(
        "Choose the records worth training on: a recipe of conf/selection (or a .yaml file) filters, de-duplicates,\n"
        "decontaminates and mixes them into OUTPUT/selected.jsonl, with a report of what each step dropped and why.",
        "python tools/select_data.py gsm8k data.train=train.jsonl data.test=test.jsonl output=outputs/selected",
        "python tools/select_data.py --check train.jsonl rollouts.jsonl --tokenizer tokenizer.model",
        "python tools/select_data.py --check alpaca.json --source alpaca",
    )
    parser.add_argument("recipe", nargs="?", help="gsm8k, general, filters_only or the path of a .yaml file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. steps.0.length.min_characters=20")
    parser.add_argument("--force", action="store_true", help="run again, and replace another recipe's selection")
    parser.add_argument("--check", nargs="+", metavar="FILE", help="instead: list the problems of data files")
    parser.add_argument("--source", default="records", help="for --check: the form of the files (default: records)")
    parser.add_argument("--thinking", default="fast", choices=THINKING, help="for --check: the mode they are read in")
    add_tokenizer_options(parser, "for --check: render everything, too", "by the kind of tokenizer")
    options = parser.parse_intermixed_args(arguments)
    if options.check:
        from mindspore_impl.data.options import FileSet
        from mindspore_impl.data.sources import SOURCES
        from mindspore_impl.data.validators import check_all
        from mindspore_impl.text.tokenizer import Tokenizer

        forms = [name for name, kind in SOURCES.items() if kind.adapter]
        if options.source not in forms:
            raise UserError(f"--source: {options.source!r} is no form of a file{nearest(options.source, forms)}")
        tokenizer = options.tokenizer and Tokenizer.load(options.tokenizer, options.template)
        form = FileSet(source=options.source, thinking=options.thinking, path="")
        return 1 if check_all(options.check, tokenizer, form=form) else 0
    if options.recipe is None:
        parser.error("name a RECIPE, or files to --check")
    from mindspore_impl.data.selection import recipe, runner

    chosen = recipe.load(options.recipe, options.overrides)
    report = runner.run(chosen, options.recipe, options.force)
    output = Path(chosen.options.output)
    if report is None:
        print(f"{output / 'selected.jsonl'}: up to date; --force makes it again")
    else:
        print(f"{output / 'selected.jsonl'}: {report['kept']} of {report['read']} records; {output / 'report.md'}")
