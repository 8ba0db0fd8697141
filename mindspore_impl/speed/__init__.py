"""Benchmarks: each module here has `run(json_path=None)`; `BENCHMARKS` names them."""

from importlib import import_module
from pathlib import Path


def _module(name: str):
    def run(json_path: str | Path | None = None) -> None:
        import_module(f"mindspore_impl.speed.{name}").run(json_path)

    return run


# Loaded when called: a benchmark may need a peer that is not installed.
NAMES = (
    "train_step", "checkpoint", "generate", "topk_distill", "fused_linear", "data_parallel", "ascend_traffic",
    "select_data", "sweep", "evaluate",
)  # fmt: skip
BENCHMARKS = {name: _module(name) for name in NAMES}
