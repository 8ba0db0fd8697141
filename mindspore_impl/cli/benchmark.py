"""Measure our speed against named peers."""

from pathlib import Path

from mindspore_impl import speed
from mindspore_impl.cli.command import command, make_parser


@command
def main(arguments: list[str]) -> None:
    """Run one speed benchmark."""
    parser = make_parser(
        "Compare us with a named peer in the same run: a table here, rows in outputs/benchmarks.csv, JSON on request.",
        "python tools/benchmark.py train_step --json outputs/train_step.json",
    )
    parser.add_argument("name", choices=sorted(speed.PEERS))
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args(arguments)
    speed.run(options.name, options.json)
