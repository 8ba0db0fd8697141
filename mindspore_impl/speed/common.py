"""Shared by all benchmarks: alternating runs, rows, processes of their own, and the table, CSV and JSON output."""

import csv
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mindspore_impl import files, runtime
from mindspore_impl.distributed import processes

CSV = Path("outputs") / "benchmarks.csv"
SOURCES = ("measured", "emulated", "modelled")
COLUMNS = ("benchmark", "case", "metric", "unit", "ours", "peer", "peer_name", "ratio", "source", "device", "versions")


@dataclass
class Row:
    """One case of a benchmark. `ratio` > 1 means ours is better; None where there is no peer."""

    case: str
    metric: str
    unit: str
    ours: float
    peer: float | None = None
    peer_name: str | None = None
    ratio: float | None = None
    source: str = "measured"
    device: str = ""

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(f"source {self.source!r} is not one of {SOURCES}")
        self.device = self.device or runtime.device_description()


def compared(
    case: str, metric: str, unit: str, ours: float, peer: float, peer_name: str, higher: bool = False, **more
) -> Row:
    """A row with its ratio.

    Args:
        case: what is done, with its sizes.
        metric: what is told.
        unit: of both figures.
        ours: our figure.
        peer: the peer's.
        peer_name: who the peer is.
        higher: whether more is better; the ratio is then ours / peer, else peer / ours.
        more: source and device.
    """
    return Row(case, metric, unit, ours, peer, peer_name, ours / peer if higher else peer / ours, **more)


def alternate(
    runs: dict[str, Callable[[], object]], rounds: int = 7, calls: int = 1, before: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds a call of each function, in turns: a, b, c, a, b, c, ... for `rounds` rounds of `calls` calls each.

    Each function is called once before, outside the measurement, and must return only when its work is done. Rounds
    are at least five, and turns are taken so that a slow minute of the machine meets all of them. `before` is called
    ahead of each turn and not counted.
    """
    if rounds < 5:
        raise ValueError("at least five rounds, or the median means little")
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            before()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The median of each list."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def contest(
    case: str, metric: str, unit: str, runs: dict[str, Callable[[], object]], rounds: int,
    of: Callable[[float], float] = float, higher: bool = False, calls: int = 1,
) -> list[Row]:  # fmt: skip
    """Time `runs` alternately; -> a row for each but the first, which is ours.

    Args:
        case: what is done, with its sizes.
        metric: what is told.
        unit: of the figures.
        runs: ours, then each peer under its name.
        rounds: at least five.
        of: makes seconds a figure.
        higher: whether more is better.
        calls: in a round.
    """
    ours, *theirs = medians(alternate(runs, rounds, calls)).items()
    return [compared(case, metric, unit, of(ours[1]), of(seconds), name, higher) for name, seconds in theirs]


def alone(benchmark: str, *arguments) -> dict:
    """The JSON that `python -m mindspore_impl.speed.BENCHMARK ARGUMENTS` prints last, in a process of its own."""
    command = [sys.executable, "-m", f"mindspore_impl.speed.{benchmark}", *map(str, arguments)]
    done = subprocess.run(command, env=processes.environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def teacher(rng: np.random.Generator, rows: int, vocab: int, top_k: int) -> dict[str, np.ndarray]:
    """A teacher with 0.9 of its mass on K ids of each of N rows: ids_NK, logp_NK and tail_logp_N."""
    first_N1 = rng.integers(0, vocab, (rows, 1))
    return {
        "teacher_ids_NK": ((first_N1 + np.arange(top_k) * (vocab // top_k)) % vocab).astype(np.int32),
        "teacher_logp_NK": np.full((rows, top_k), np.log(0.9 / top_k), np.float32),
        "teacher_tail_logp_N": np.full(rows, np.log(0.1), np.float32),
    }


def torch_losses(log_q_NV, targets_N, teacher: tuple, subtract: bool = False) -> tuple:
    """(ce_N, kd_N) by PyTorch from log-probabilities: cross-entropy, and forward KL with the tail bucket.

    teacher: ids_NK (int64), logp_NK, tail_logp_N. subtract: the tail's mass as 1 - sum, quicker and less exact.
    """
    import torch

    ids_NK, log_p_NK, log_p_tail_N = teacher
    log_q_NK = log_q_NV.gather(1, ids_NK)
    if subtract:
        log_q_tail_N = torch.log1p(-log_q_NK.exp().sum(1))
    else:
        log_q_tail_N = torch.logsumexp(log_q_NV.scatter(1, ids_NK, -torch.inf), -1)
    kd_N = (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum(1) + log_p_tail_N.exp() * (log_p_tail_N - log_q_tail_N)
    return -log_q_NV.gather(1, targets_N[:, None])[:, 0], kd_N


def publish(benchmark: str, rows: list[Row], versions: dict[str, str], json_path: str | Path | None = None) -> None:
    """Print one table, append the rows to CSV and, with `json_path`, write them as a JSON list."""
    print(f"{benchmark} on {rows[0].device}; " + ", ".join(f"{name} {value}" for name, value in versions.items()))
    print(table(rows))
    found = [{"benchmark": benchmark, **asdict(row), "versions": versions} for row in rows]
    text, names = io.StringIO(), ["time", *COLUMNS]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    if CSV.exists():  # the whole file is written again, so that a kill never leaves half a row
        text.write(CSV.read_text(encoding="utf-8"))
    else:
        writer.writeheader()
    plain = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": " ".join(f"{name}={value}" for name, value in versions.items()),
    }
    writer.writerows(row | plain for row in found)
    files.write_text(CSV, text.getvalue())
    if json_path is not None:
        files.write_json(json_path, found)


def table(rows: list[Row]) -> str:
    """The rows as aligned text. What is not measured says so; a missing peer or ratio is a dash."""
    lines = [("case", "metric", "ours", "peer", "ratio", "peer is", "source")] + [
        (row.case, f"{row.metric} ({row.unit})", *map(_shown, (row.ours, row.peer, row.ratio)), row.peer_name or "-",
         row.source)
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'>' if 2 <= place <= 4 else '<'}{width}}}" for place, width in enumerate(widths))
    return "\n".join(form.format(*line).rstrip() for line in lines)


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
