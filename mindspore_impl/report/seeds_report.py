"""Summarise one curriculum over several seeds: summary.json, summary.md and report.html, from the run directories."""

from collections.abc import Sequence
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.report import figures, render
from mindspore_impl.report.run_files import RunView, read_run
from mindspore_impl.report.statistics import paired_difference, spread

SCHEMA = 1
Values = dict[tuple[str, str], dict[str, float]]  # (stage, set): {seed: accuracy}


def write_seeds_report(run_dirs: dict, folder: str | Path, compare: tuple[str, str] | None = None) -> dict:
    """Summarise the runs of `run_dirs` (seed: run directory) in `folder`; return the content of summary.json.

    `compare` names two stages (one, reference), whose difference is tested over the seeds; None: the last evaluated and
    each earlier one. Accuracies are in [0, 1]; n counts seeds. Raises UserError when there is no run, or no such stage.
    """
    if not run_dirs:
        raise UserError(f"{folder}: no run to summarise; give at least one seed")
    runs = {str(seed): read_run(path) for seed, path in run_dirs.items()}
    stages, sets, values = _collect(runs)
    pairs = [_resolve(runs, stages, compare)] if compare else [(stages[-1], stage) for stage in stages[:-1]]
    headline = dict.fromkeys([*stages[-1:], *(pairs[0] if compare else ())])  # the last one first
    summary = {
        "schema": SCHEMA,
        "seeds": list(runs),
        "stages": [
            {"stage": stage, "set": name, **spread(list(by_seed.values())), "values": by_seed}
            for stage in stages
            for name in sets
            if (by_seed := values.get((stage, name)))
        ],
        "differences": [row for pair in pairs for name in sets if (row := _difference(*pair, name, values))],
    }
    folder = Path(folder)
    name = next(iter(runs.values())).name
    files.write_json(folder / "summary.json", summary)
    files.write_text(folder / "summary.md", _markdown(name, summary))
    files.write_text(folder / "report.html", _page(name, summary, stages, sets, values, headline))
    return summary


def _collect(runs: dict[str, RunView]) -> tuple[list[str], list[str], Values]:
    """Stages in order, sets by name, and the accuracy of each under each seed."""
    stages: list[str] = []
    values: Values = {}
    for seed, run in runs.items():
        for stage in run.stages:
            if stage.status != "finished" or not stage.accuracy:
                continue
            if stage.subject not in stages:
                stages.append(stage.subject)
            for name, result in stage.accuracy.items():
                values.setdefault((stage.subject, name), {})[seed] = result["accuracy"]
    return stages, sorted({name for _, name in values}), values


def _resolve(runs: dict[str, RunView], stages: list[str], compare: tuple[str, str]) -> tuple[str, str]:
    """The two stages to compare, each named by itself or by its evaluation."""
    subjects = {stage.name: stage.subject for run in runs.values() for stage in run.stages}
    found = [subjects.get(name, name) for name in compare]
    for name, stage in zip(compare, found, strict=True):
        if stage not in stages:
            known = ", ".join(stages) or "none"
            raise UserError(f"compare: no accuracy was measured for stage {name!r}; there is one for: {known}")
    return found[0], found[1]


def _difference(one: str, reference: str, name: str, values: Values) -> dict | None:
    """one - reference over the seeds that have both; None when none has."""
    first, second = values.get((one, name), {}), values.get((reference, name), {})
    shared = [seed for seed in first if seed in second]
    if not shared:
        return None
    result = paired_difference([first[seed] for seed in shared], [second[seed] for seed in shared])
    return {"set": name, "stage": one, "reference": reference, **result}


def _stage_table(summary: dict) -> tuple[list[str], list[list[str]]]:
    head = ["stage", "set", "mean", "95 % interval", "standard deviation", "n"]
    rows = []
    for row in summary["stages"]:
        bounds = "–" if row["low"] is None else f"{render.percent(row['low'])} to {render.percent(row['high'])}"
        numbers = [render.percent(row["mean"]), bounds, render.percent(row["deviation"]), str(row["n"])]
        rows.append(
            [row["stage"], row["set"], *numbers, *(render.percent(row["values"].get(s)) for s in summary["seeds"])]
        )
    return [*head, *(f"seed {seed}" for seed in summary["seeds"])], rows


def _markdown(name: str, summary: dict) -> str:
    parts = [f"# {name}: {len(summary['seeds'])} seeds\n", "Accuracy in percent.\n"]
    parts += [render.markdown_table(*_stage_table(summary)), *render.difference_markdown(summary["differences"])]
    return "\n".join(parts)


def _page(name: str, summary: dict, stages: list[str], sets: list[str], values: Values, headline: Sequence[str]) -> str:
    number = len(summary["seeds"])
    means = "; ".join(f"{row['stage']} {row['set']} mean {render.percent(row['mean'])}" for row in summary["stages"])
    rows = [(stage, {name: list(values.get((stage, name), {}).values()) for name in sets}) for stage in stages]
    plot = render.figure(
        figures.interval_figure(rows, sets),
        f"Accuracy by stage over {number} seeds: {means}",
        "A mark at the mean, a line for its 95 % t interval, a point for each seed.",
    )
    items = []
    for row in (row for stage in headline for row in summary["stages"] if row["stage"] == stage):
        seeds = "1 seed" if row["n"] == 1 else f"{row['n']} seeds"
        note = f"mean of {seeds}, standard deviation {render.percent(row['deviation'])}"
        items.append((f"{row['set']}, after {row['stage']}", f"{render.percent(row['mean'])} %", note))
    return render.page(
        f"{name}: {number} seeds",
        render.paragraphs(f"{len(stages)} evaluated stages; each seed's own report is in its folder."),
        [
            ("summary", "Result", render.tiles(items) if items else ""),
            ("accuracy", "Accuracy by stage", plot),
            ("differences", "Differences between stages", render.difference_table(summary["differences"])),
            ("values", "Every value", render.table(*_stage_table(summary), "Accuracy in percent.", 2)),
        ],
    )
