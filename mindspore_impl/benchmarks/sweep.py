"""A sweep that shares its stages through the cache against the same sweep without it, which is as many single runs.

Six weights of the teacher on a reduced quickstart: all that comes before distillation is shared.
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mindspore_impl import files, ranks, runtime
from mindspore_impl.benchmarks.common import Row, compared, publish
from mindspore_impl.errors import JobFailed

NAME = "sweep"
WEIGHTS = "0.5,0.6,0.7,0.8,0.9,1.0"
STEPS = 40
SMALL = [
    "order=[teacher,sft_reasoning,sft_fast,rollout_fast,capture_fast,distill_fast]",
    "compare=[]",
    *(f"stages.{name}.train.steps={STEPS}" for name in ("teacher", "sft_reasoning", "sft_fast", "distill_fast")),
    *(f"data.sets.{name}.count=2000" for name in ("teacher_reasoning", "teacher_fast")),
    *(f"data.sets.{name}.count=1000" for name in ("reasoning", "fast")),
    "stages.rollout_fast.rollout.limit=100",
    "evaluation.accuracy=[]",
    "runtime.threads=2",
]
CASE = f"6 stages of the quickstart, {STEPS} steps each, {len(WEIGHTS.split(','))} values of kd_weight"
_PACKAGE = Path(__file__).resolve().parents[1]
_CODE = f"import sys; from {_PACKAGE.name}.cli import train; sys.exit(train())"


def run(json_path: str | Path | None = None) -> list[Row]:
    """Run both once (each takes minutes), print, append to outputs/benchmarks.csv, write JSON on request."""
    runtime.setup(runtime.RuntimeOptions(), seed=0)
    folder = Path(tempfile.mkdtemp(prefix="sweep_benchmark_"))
    try:
        alone, alone_metrics = _sweep(folder / "alone", "runtime.cache=null")
        shared, shared_metrics = _sweep(folder / "shared")
    finally:
        shutil.rmtree(folder)
    if shared_metrics != alone_metrics:
        raise JobFailed(f"the cache changes results: {shared_metrics} instead of {alone_metrics}")
    rows = [compared(NAME, CASE, "time", "s", shared, alone, "the same runs without the cache", False)]
    publish(rows, json_path)
    return rows


def _sweep(folder: Path, *more: str) -> tuple[float, list[float]]:
    """Seconds of the whole sweep, and the metric of each trial."""
    words = [f"stages.distill_fast.objective.kd_weight={WEIGHTS}", *SMALL, f"run_dir={folder}", *more]
    words += ["sweep.metric=distill_fast.perplexity.validation_fast"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_PACKAGE.parent), *sys.path])}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", _CODE, "--multirun", *words],
        env=environment,
        check=True,
        preexec_fn=functools.partial(ranks.die_with_parent, signal.SIGTERM),
    )
    seconds = time.perf_counter() - start
    return seconds, [trial["metric"] for trial in files.read_json(folder / "sweep.json")["trials"]]
