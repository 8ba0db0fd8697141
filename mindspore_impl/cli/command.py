"""What every command shares: exit codes, error messages, the argument parser and common options.

Exit codes: 0 success; 1 a process of a job or a trial of a sweep failed, or a check found problems; 2 user error (one
message on stderr, a traceback only with PANGU_DEBUG=1); 130 Ctrl-C; 141 nobody reads the output any more, as after
`| head`; 143 SIGTERM.
"""

import argparse
import functools
import io
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

from mindspore_impl.distributed import ranks
from mindspore_impl.errors import JobFailed, UserError


def command(function: Callable[[list[str]], int | None]) -> Callable[[list[str] | None], int]:
    """Turn `function(arguments)` into an entry point that reports errors and returns an exit code.

    `function` may return an exit code. Without arguments the entry point reads sys.argv.
    """

    @functools.wraps(function)
    def entry(arguments: list[str] | None = None) -> int:
        os.environ.setdefault("GLOG_v", "3")  # MindSpore's own log: errors only
        if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr: what the terminal's encoding lacks is escaped
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            try:
                return function(sys.argv[1:] if arguments is None else arguments) or 0
            finally:
                sys.stdout.flush()
        except (UserError, JobFailed) as error:
            if isinstance(error, UserError) and os.environ.get("PANGU_DEBUG") == "1":
                raise
            return _fail(f"error: {error}", 2 if isinstance(error, UserError) else 1)
        except KeyboardInterrupt:
            return _fail("interrupted; the same command continues where it stopped", 130)
        except ranks.Stopped as stop:
            ranks.settle(stop)
            return _fail("stopped by SIGTERM; the same command continues where it stopped", ranks.STOPPED)
        except BrokenPipeError:
            output = select.poll()
            output.register(sys.stdout, 0)
            if not output.poll(0):  # an error of another pipe
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
            return 141

    return entry


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def make_parser(description: str, *examples: str) -> argparse.ArgumentParser:
    """An argument parser whose --help ends with `examples`, a command line each."""
    return argparse.ArgumentParser(
        description=description,
        epilog="\n  ".join(["example:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_tokenizer_options(
    parser: argparse._ActionsContainer,
    tokenizer: str = "default: the one beside the model",
    template: str = "the run's, or by the kind of tokenizer",
) -> None:
    """Add --tokenizer (help text `tokenizer`) and --template (with the default in words)."""
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help=tokenizer)
    parser.add_argument("--template", help=f"pangu, chatml or smollm2 (default: {template})")


def add_plugins_option(parser: argparse._ActionsContainer) -> None:
    """Add --plugins, for commands that read the configuration of a run."""
    parser.add_argument("--plugins", nargs="+", default=[], metavar="MODULE", help="modules of the run's own kinds")
