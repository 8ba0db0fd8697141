"""Import mindformers without its log files and its output on stdout."""

import atexit
import functools
import importlib
import logging
import os
import shutil
import tempfile


def import_mindformers(*modules: str) -> None:
    """Import modules of mindformers (such as "core.optim") without `./output/log` and without messages on stdout.

    Its loggers read the path of their files at any import, so the two variables stay set for this process, to a folder
    that is removed at exit. Values that the user has set are kept.
    """
    _mindformers_logs()
    logging.disable(logging.WARNING)  # of what is logged while importing
    try:
        for module in modules:
            importlib.import_module(f"mindformers.{module}")
    finally:
        logging.disable(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("mindformers") and isinstance(logger, logging.Logger):
            logger.setLevel(logging.ERROR)


@functools.cache
def _mindformers_logs() -> None:
    folder = tempfile.mkdtemp(prefix="mindformers_log_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("LOG_MF_PATH", "LOCAL_DEFAULT_PATH"):
        os.environ.setdefault(name, os.path.join(folder, "log"))
