"""The exceptions whose text is meant for the person at the keyboard."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

# What MindSpore says where memory runs out ("Memory not enough", "Memory isn't enough and alloc failed", "Allocate
# memory failed", "Malloc device memory failed", "Out of memory", "std::bad_alloc"), all of it as RuntimeError.
_NO_MEMORY = re.compile(
    r"memory (not|isn't) enough|out of memory|alloc\w*( \w+)? memory failed|failed to alloc|bad_alloc", re.IGNORECASE
)


class UserError(Exception):
    """A fault in the input (config, data, checkpoint, disk) that the user can mend.

    The text names the file, key or record and says what to do. `cli.command` prints it without a traceback and exits 2.
    """


@contextmanager
def enough_memory(where: str, advice: str) -> Iterator[None]:
    """Turn a failed allocation of Python, NumPy or MindSpore into a UserError.

    Its message holds `where`, the error, and `advice`, which names the options to lower.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        lines = [line.strip(" -\t") for line in str(error).splitlines()]
        said = max((line for line in lines if _NO_MEMORY.search(line)), key=len, default=lines[0] if lines else "")
        raise UserError(f"{where}: out of memory ({said or type(error).__name__}); {advice}") from error


class JobFailed(Exception):
    """A job of several processes, or a trial of a sweep, has failed; the message says which and why. Exit code 1."""
