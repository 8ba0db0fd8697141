"""Shared by all benchmarks: alternating runs, medians, and the table, CSV and JSON output."""

import csv
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mindspore_impl import files, runtime

CSV = Path("outputs") / "benchmarks.csv"
SOURCES = ("measured", "emulated", "modelled")


@dataclass
class Row:
    """One case of one benchmark. `ratio` > 1 means ours is better; None where there is no peer."""

    benchmark: str
    case: str
    metric: str
    unit: str
    ours: float
    peer: float | None = None
    peer_name: str | None = None
    ratio: float | None = None
    source: str = "measured"
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(f"source {self.source!r} is not one of {SOURCES}")
        self.device = self.device or runtime.device_description()
        self.versions = self.versions or runtime.versions()


def compared(
    benchmark: str, case: str, metric: str, unit: str, ours: float, peer: float, peer_name: str,
    higher_is_better: bool, source: str = "measured", versions: dict[str, str] | None = None,
) -> Row:  # fmt: skip
    """A row whose ratio is worked out: ours / peer where higher is better, peer / ours where lower is."""
    ratio = ours / peer if higher_is_better else peer / ours
    return Row(benchmark, case, metric, unit, ours, peer, peer_name, ratio, source, versions=versions or {})


def alternate(runs: dict[str, Callable[[], object]], rounds: int = 7, calls: int = 1) -> dict[str, list[float]]:
    """Seconds a call of each function, in turns: a, b, c, a, b, c, ... for `rounds` rounds of `calls` calls each.

    Each function is called once before, outside the measurement, and must return only when its work is done. Rounds
    are at least five, and turns are taken so that a slow minute of the machine meets all of them.
    """
    if rounds < 5:
        raise ValueError("at least five rounds, or the median means little")
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(calls):
                run()
            seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The median of each list."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def publish(rows: list[Row], json_path: str | Path | None = None, csv_path: str | Path = CSV) -> None:
    """Print one table, append the rows to the CSV and, with `json_path`, write them as a JSON list."""
    print(table(rows))
    _append(rows, Path(csv_path))
    if json_path is not None:
        files.write_json(json_path, [asdict(row) for row in rows])


def table(rows: list[Row]) -> str:
    """The rows as aligned text. What is not measured says so; a missing peer or ratio is a dash."""
    head = ("case", "metric", "ours", "peer", "ratio", "peer is", "source")
    body = [
        (row.case, f"{row.metric} ({row.unit})", _shown(row.ours), _shown(row.peer), _shown(row.ratio),
         row.peer_name or "-", row.source)
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    lines = []
    for line in (head, *body):
        cells = [cell.rjust(w) if 2 <= i <= 4 else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths))]  # noqa: B905
        lines.append("  ".join(cells).rstrip())
    first = rows[0]
    title = f"{first.benchmark} on {first.device}; " + ", ".join(f"{k} {v}" for k, v in first.versions.items())
    return "\n".join([title, *lines])


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _append(rows: list[Row], path: Path) -> None:
    """Append under a header; the whole file is rewritten, so that a kill never leaves half a row."""
    names = ["time", *Row.__dataclass_fields__]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    if path.exists():
        text.write(path.read_text(encoding="utf-8"))
    else:
        writer.writeheader()
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    for row in rows:
        versions = " ".join(f"{name}={version}" for name, version in row.versions.items())
        writer.writerow(asdict(row) | {"time": now, "versions": versions})
    files.write_text(path, text.getvalue())
