"""Options of a sweep: the `sweep` group of conf/."""

from dataclasses import dataclass, field
from typing import Literal

from mindspore_impl.schema import option


@dataclass
class OptunaOptions:
    """Trials that are proposed from the results of earlier ones."""

    n_trials: int = option(20, low=1)  # trials in all
    sampler: Literal["tpe", "random", "grid"] = "tpe"  # grid: every combination in turn, without Optuna
    seed: int = option(0, low=0)  # of the proposals


@dataclass
class SweepOptions:
    """What is varied, and by what number a trial is judged."""

    metric: str | None = None  # STAGE.accuracy.SET, STAGE.perplexity.SET or another path in a stage's metrics
    direction: Literal["maximize", "minimize"] = "maximize"  # whether a larger or a smaller metric is better
    trials: dict[str, list[str]] = field(default_factory=dict)  # name: overrides; times all of `params`
    params: dict[str, str] = field(default_factory=dict)  # key: values as on the command line, such as "0.5, 0.9"
    optuna: OptunaOptions | None = None  # null: every combination
    compare: dict[str, list[str]] = field(default_factory=dict)  # trial: those it is held against; {}: the first
    labels: dict[str, str] = field(default_factory=dict)  # trial: its name in the report
