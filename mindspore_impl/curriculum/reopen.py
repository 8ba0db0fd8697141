"""A run directory as the run that it is."""

import dataclasses
from pathlib import Path

from mindspore_impl.config import Config, validate
from mindspore_impl.errors import UserError
from mindspore_impl.report.run_files import read_config


def reopen(run_dir: Path, overrides: list[str]) -> Config:
    """The configuration in `run_dir`, wherever that lies now. Raises UserError for any override beside it."""
    if overrides:
        raise UserError(f"--resume: the run goes on as it was configured; leave out {' '.join(overrides)}")
    return dataclasses.replace(validate(read_config(run_dir)[0]), run_dir=str(run_dir))
