"""Locate the native CPU operators of kernels/cpu, and build their library when it is missing or outdated.

A clone builds mindspore_impl/lib, a package carries it. Without it composed operators are used, with a warning.
"""

import ctypes
import fcntl
import functools
import importlib.util
import sys
from pathlib import Path

from mindspore_impl import runtime

PACKAGE = Path(__file__).resolve().parent.parent
LIBRARY = PACKAGE / "lib" / "libpangu_cpu.so"
BUILDER = PACKAGE.parent / "kernels" / "cpu" / "build.py"  # in a clone


def operator(name: str) -> str | None:
    """What `ops.Custom(..., func_type="aot")` takes for `name`; None where the library is missing. Sets its threads."""
    path = library()
    if path is None:
        return None
    ctypes.CDLL(str(path)).SetThreads(runtime.threads())
    return f"{path}:{name}"


def builder():
    """The module kernels/cpu/build.py of a clone; it needs nothing but the standard library."""
    spec = importlib.util.spec_from_file_location("pangu_cpu_build", BUILDER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def library() -> Path | None:
    """The library's path, loadable and built where it was not; None where there is none, which is said once."""
    try:
        if BUILDER.is_file():
            _build_if_old()
        elif not LIBRARY.is_file():
            raise OSError("this package was installed without it; install again where g++ is")
        ctypes.CDLL(str(LIBRARY))
        return LIBRARY
    except (OSError, RuntimeError) as error:
        _say(f"native CPU operators are not available, composed ones are used: {error}")
        return None


def _build_if_old() -> None:
    """Build the library unless it is that of the sources; other processes wait for the one that does."""
    build = builder()
    if build.is_current(LIBRARY.parent):
        return
    if build.compiler() is None:
        raise OSError("no C++ compiler; install g++")
    LIBRARY.parent.mkdir(exist_ok=True)
    with open(LIBRARY.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if build.is_current(LIBRARY.parent):
            return
        _say("building the native CPU operators (once, some seconds) ...")
        try:
            build.build(LIBRARY.parent)
        except build.BuildError as error:
            raise RuntimeError(str(error)) from error


def _say(text: str) -> None:
    if runtime.rank() == 0:
        print(text, file=sys.stderr, flush=True)
