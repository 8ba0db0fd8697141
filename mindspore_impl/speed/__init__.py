"""Speed benchmarks against named peers, one module each; see README.md."""

from importlib import import_module
from pathlib import Path

NAMES = (
    "train_step", "checkpoint", "generate", "topk_distill", "fused_linear", "data_parallel", "ascend_traffic",
    "select_data", "sweep", "evaluate",
)  # fmt: skip


def run(name: str, json_path: Path | None = None) -> None:
    """Run the benchmark `name`. Only its module is imported: others may need peers that are not installed."""
    import_module(f"mindspore_impl.speed.{name}").run(json_path)
