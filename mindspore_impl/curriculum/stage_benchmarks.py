"""Benchmarks of a curriculum's stages: `evaluation/benchmarks.py` for every evaluation in use."""

from mindspore_impl.config import Config, EvaluateStage
from mindspore_impl.evaluation.benchmarks import check_lengths, measure, metric_paths, problems
from mindspore_impl.evaluation.benchmarks import content as benchmark_content

__all__ = ["benchmark_content", "benchmark_problems", "check_lengths", "measure", "metric_paths"]


def benchmark_problems(config: Config) -> list[str]:
    """Every reason why an entry in use cannot be measured, each naming its key. Needs no model."""
    found = {}
    for name in config.order:
        stage = config.stages[name]
        own = getattr(stage, "options", None)
        if isinstance(stage, EvaluateStage) or getattr(stage, "evaluate", False):
            found[f"stages.{name}.options" if own else "evaluation"] = own or config.evaluation
    return [problem for key, options in found.items() for problem in problems(key, options)]
