"""Print what this machine has, what is missing, and how to install it."""

from mindspore_impl.cli.command import command, make_parser


@command
def main(arguments: list[str]) -> None:
    """Print one line a finding, with the remedy below what is missing."""
    parser = make_parser("Print what this machine has, what is missing, and its remedy.", "python tools/doctor.py")
    parser.parse_args(arguments)
    from mindspore_impl.doctor.examine import examine

    for finding in examine():
        print(finding)
