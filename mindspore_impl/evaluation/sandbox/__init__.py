"""Run untrusted Python programs against their tests, inside every isolation layer that this machine offers.

The program and its tests run in two processes: the tests call into the program, and the verdict comes from their side.
`supervisor.py` runs by path under `python -I -S -B`, without the packages of the environment: `syscalls`, `layers`,
`exchange`, `program` and this file import the standard library alone. The public names (`run.py`) load on first use.
"""

__all__ = [
    "LAYERS", "PROMISES", "Isolation", "Limits", "Program", "Result",
    "check_isolation", "isolation", "run_many", "run_program",
]  # fmt: skip


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mindspore_impl.evaluation.sandbox import run

    return getattr(run, name)
