"""A sweep that shares stages through the cache, against the same sweep without it.

Six weights of the teacher on a reduced quickstart: all that comes before distillation is shared.
"""

import resource
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from mindspore_impl import files, runtime
from mindspore_impl.distributed import processes
from mindspore_impl.errors import JobFailed
from mindspore_impl.speed.common import Row, compared

WEIGHTS = ("0.5", "0.6", "0.7", "0.8", "0.9", "1.0")
METRIC = "distill_fast.perplexity.validation_fast"
STEPS = 40
SMALL = [
    "order=[teacher,sft_reasoning,sft_fast,rollout_fast,capture_fast,distill_fast]",
    "compare=[]",
    *(f"stages.{name}.train.max_steps={STEPS}" for name in ("teacher", "sft_reasoning", "sft_fast", "distill_fast")),
    *(f"data.sets.{name}.count=2000" for name in ("teacher_reasoning", "teacher_fast")),
    *(f"data.sets.{name}.count=1000" for name in ("reasoning", "fast")),
    "stages.rollout_fast.rollout.limit=100",
    "evaluation.accuracy=[]",
    "runtime.threads=2",
]


def rows(weights: tuple[str, ...] = WEIGHTS) -> list[Row]:
    """Grow both sweeps by one trial in turns (each takes minutes); the start-up of the sweep counts on both sides."""
    runtime.setup(runtime.RuntimeOptions(), seed=0)
    forms = {"shared": [], "alone": ["runtime.cache=null"]}
    spent = {name: np.zeros(2) for name in forms}
    with tempfile.TemporaryDirectory(prefix="sweep_benchmark_") as folder:
        for count in range(1, len(weights) + 1):
            for name, more in forms.items():
                spent[name] += _grow(Path(folder, name), weights[:count], more)
        trials = [files.read_json(Path(folder, name, "sweep.json"))["trials"] for name in forms]
    shared, alone = ([trial["metric"] for trial in some] for some in trials)
    if shared != alone:
        raise JobFailed(f"the cache changes results: {shared} instead of {alone}")
    case = f"6 stages of the quickstart, {STEPS} steps each, {len(weights)} values of kd_weight"
    return [
        compared(case, metric, "s", *map(float, figures), "the same runs without the cache")
        for metric, *figures in zip(("time", "processor time"), spent["shared"], spent["alone"], strict=True)
    ]


def _grow(folder: Path, weights: tuple[str, ...], more: list[str]) -> tuple[float, float]:
    """Run what the sweep over `weights` still lacks; seconds by the clock, and of all its processes."""
    values = ",".join([*weights, weights[0]])  # a list, even of one value
    words = [f"stages.distill_fast.objective.kd_weight={values}", *SMALL, f"run_dir={folder}", *more]
    start, before = time.perf_counter(), _processor_seconds()
    command = processes.train_command("--multirun", *words, f"sweep.metric={METRIC}")
    code = processes.start(command, signal.SIGTERM, None).wait()
    if code:
        raise JobFailed(f"the sweep in {folder} ended with exit code {code}")
    return time.perf_counter() - start, _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
