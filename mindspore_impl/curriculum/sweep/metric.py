"""The metric of a trial: STAGE.accuracy.SET, STAGE.perplexity.SET, STAGE.benchmarks.NAME.METRIC.

Any other path in a stage's metrics works too.

The name `final` stands for the stage that a run evaluates last, whatever it is called.
"""

import difflib
import math

from mindspore_impl.config import Config, EvaluateStage
from mindspore_impl.curriculum.plan import PlannedStage
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.benchmarks import metric_paths
from mindspore_impl.schema import nearest

MEASURES = ("accuracy", "perplexity")
FINAL = "final"


def check_metric(metric: str, config: Config, plan: list[PlannedStage]) -> None:
    """Refuse a metric that no stage of the plan can produce. Raises UserError with the nearest that one does."""
    stage, _, path = metric.partition(".")
    known = [name for planned in plan for name in _measured(config, planned)]
    last = [planned for planned in plan if isinstance(planned.stage, EvaluateStage)][-1:]
    known += [name for planned in last for name in _measured(config, planned, FINAL)]
    if metric in known:
        return
    runs = any(planned.name in (stage, f"eval_{stage}") for planned in plan) or (stage == FINAL and last)
    near = difflib.get_close_matches(metric, known, n=1, cutoff=0.9)
    # What else a stage's metrics hold is known when it has run.
    if not runs or not path or near or path.split(".")[0] in (*MEASURES, "benchmarks"):
        raise UserError(f"sweep.metric: no stage produces {metric!r}{nearest(metric, known)}")


def _measured(config: Config, planned: PlannedStage, name: str | None = None) -> list[str]:
    if not isinstance(planned.stage, EvaluateStage):
        return []
    options = planned.stage.options or config.evaluation
    init = planned.stage.init
    name = name or (init if planned.name == f"eval_{init}" else planned.name)
    known = [f"{name}.{measure}.{found}" for measure in MEASURES for found in getattr(options, measure)]
    return known + [f"{name}.{path}" for path in metric_paths(options)]


def metric_of(metrics: dict, metric: str) -> float:
    """The value of `metric` in a run's metrics.json. Raises UserError when it is not there or no finite number."""
    stage, *path = metric.split(".")
    evaluated = [entry["name"] for entry in metrics["stages"] if entry.get("kind") == "evaluate"]
    wanted = evaluated[-1:] if stage == FINAL else [stage, f"eval_{stage}"]
    for entry in metrics["stages"]:
        if entry["name"] not in wanted:
            continue
        value = entry["metrics"]
        for word in path:
            value = value.get(word) if isinstance(value, dict) else None
        if isinstance(value, dict) and path:  # such as accuracy.SET: {"accuracy": 0.5, "low": ...}
            value = value.get(path[0])
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    raise UserError(f"sweep.metric: no finite number is called {metric!r} in the metrics of this trial")
