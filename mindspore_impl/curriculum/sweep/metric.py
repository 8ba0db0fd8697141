"""The metric of a trial: STAGE.accuracy.SET, STAGE.perplexity.SET, STAGE.benchmarks.NAME.METRIC.

Any other path in a stage's metrics works too. The name `final` stands for the stage that a run evaluates last.
"""

import difflib
import math

from mindspore_impl.curriculum.configuration import Config
from mindspore_impl.curriculum.stages import PlannedStage
from mindspore_impl.errors import UserError
from mindspore_impl.report.sweep_files import FINAL
from mindspore_impl.schema import nearest


def check_metric(metric: str, config: Config, plan: list[PlannedStage]) -> None:
    """Refuse a metric that no stage of the plan can produce. Raises UserError with the nearest that one does."""
    stage, _, path = metric.partition(".")
    paths = {planned.name: planned.stage.metric_paths(config) for planned in plan}
    names = {planned.name: planned.stage.measured(planned.name) or planned.name for planned in plan}
    known = [f"{names[name]}.{each}" for name, found in paths.items() for each in found]
    last = next((name for name in reversed(paths) if paths[name]), None)
    known += [f"{FINAL}.{each}" for each in paths.get(last, ())]
    if metric in known:
        return
    runs = stage in {*names, *names.values()} or (stage == FINAL and last is not None)
    near = difflib.get_close_matches(metric, known, n=1, cutoff=0.9)
    measures = {each.split(".")[0] for found in paths.values() for each in found}
    # What else a stage's metrics hold is known once it has run.
    if not runs or not path or near or path.split(".")[0] in {*measures, "accuracy", "perplexity", "benchmarks"}:
        raise UserError(f"sweep.metric: no stage produces {metric!r}{nearest(metric, known)}")


def metric_of(metrics: dict, metric: str) -> float:
    """The value of `metric` in a run's metrics.json. Raises UserError when it is not there or no finite number."""
    stage, *path = metric.split(".")
    wanted = [entry for entry in metrics["stages"] if stage in (entry["name"], entry.get("measured"))]
    if stage == FINAL:
        wanted = [entry for entry in metrics["stages"] if entry.get("measured")][-1:]
    for entry in wanted:
        value = entry["metrics"]
        for word in path:
            value = value.get(word) if isinstance(value, dict) else None
        if isinstance(value, dict) and path:  # such as accuracy.SET: {"accuracy": 0.5, "low": ...}
            value = value.get(path[0])
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    raise UserError(f"sweep.metric: no finite number is called {metric!r} in the metrics of this trial")
