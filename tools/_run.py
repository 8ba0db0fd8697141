"""Run a command of this clone without an installation."""

import importlib
import sys
from pathlib import Path


def run(command: str) -> None:
    """Call `main` of mindspore_impl/cli/`command`.py and exit with its code."""
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not tools/, whose names hide installed packages
    sys.exit(importlib.import_module(f"mindspore_impl.cli.{command}").main())
