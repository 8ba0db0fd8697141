"""The report of a sweep: trials that differ only by seed are one configuration, with mean and standard deviation.

Written into the sweep's folder: report.html, summary.md, summary.csv (a row a configuration), trials.csv.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.report import figures
from mindspore_impl.report.figures import duration
from mindspore_impl.report.page import esc, figure, page, table, tiles
from mindspore_impl.report.run_files import RunView, read_run
from mindspore_impl.report.statistics import mean, paired_difference, spread
from mindspore_impl.report.sweep_files import FAILED, FINISHED, Sweep, Trial, read_sweep
from mindspore_impl.report.tables import DIFFERENCE_HEAD, difference_rows, difference_table, markdown_table, percent

_PLOTTED = 16  # configurations; more names would not be legible
_LEGEND = "Mean ± standard deviation over the seeds; accuracy in percent."


@dataclass
class TrialView:
    """A trial with what its run directory holds."""

    trial: Trial
    choices: dict[str, str]  # key: value
    accuracy: dict[str, float] = field(default_factory=dict)  # "STAGE.SET": share in [0, 1]
    cached: list[str] = field(default_factory=list)  # stages that came from a cache

    @property
    def seed(self) -> str | None:
        """The seed that its overrides choose."""
        return self.choices.get("seed")


@dataclass
class Group:
    """The finished and other trials of one configuration."""

    title: str
    trials: list[TrialView]

    @property
    def finished(self) -> list[TrialView]:
        """Those that count."""
        return [view for view in self.trials if view.trial.status == FINISHED]

    def metrics(self) -> list[float]:
        """The metric of each finished trial."""
        return [view.trial.metric for view in self.finished if view.trial.metric is not None]

    def accuracies(self, name: str) -> list[float]:
        """ "STAGE.SET" of each finished trial that measured it."""
        return [view.accuracy[name] for view in self.finished if name in view.accuracy]


def write_sweep_report(folder: str | Path) -> Path:
    """Write the report of the sweep in `folder`, finished or not, from its files alone; return the path of the page.

    Raises UserError when the folder is no sweep's or one of its files is damaged.
    """
    folder = Path(folder)
    sweep = read_sweep(folder)
    views, shown = _read_trials(folder, sweep)
    groups = _grouped(sweep, views)
    head, rows = _group_table(sweep, groups, shown)
    differences = _differences(sweep, groups)
    files.write_text(folder / "summary.csv", _csv([_csv_head(sweep, shown), *_csv_rows(sweep, groups, shown)]))
    files.write_text(folder / "trials.csv", _csv(_trials_csv(sweep, views)))
    files.write_text(folder / "summary.md", _markdown(sweep, views, head, rows, differences))
    files.write_text(folder / "report.html", _page(sweep, views, groups, shown, head, rows, differences))
    return folder / "report.html"


def _read_trials(folder: Path, sweep: Sweep) -> tuple[list[TrialView], list[str]]:
    """Every trial, and the accuracies worth a column: those of the stages that the runs compare, or of the last one."""
    views, shown = [], {}
    for trial in sweep.trials:
        choices = dict(text.partition("=")[::2] for text in trial.overrides)
        view = TrialView(trial, choices)
        if (folder / trial.folder / "config.yaml").is_file():
            run = read_run(folder / trial.folder)
            view.cached = [stage.name for stage in run.stages if stage.cached]
            view.accuracy = {
                f"{stage.measured}.{name}": result["accuracy"]
                for stage in run.stages
                for name, result in stage.accuracy.items()
            }
            if trial.status == FINISHED:
                shown |= dict.fromkeys(_headline(run))
        views.append(view)
    return views, list(shown)


def _headline(run: RunView) -> list[str]:
    wanted = set(run.config.get("compare") or []) or {run.last_evaluated.measured if run.last_evaluated else None}
    return [f"{stage.measured}.{name}" for stage in run.stages if stage.measured in wanted for name in stage.accuracy]


def _grouped(sweep: Sweep, views: list[TrialView]) -> list[Group]:
    """Configurations; the best first where there is a metric, else in the order of the trials."""
    found: dict[str, list[TrialView]] = {}
    for view in views:
        found.setdefault(view.trial.group, []).append(view)
    groups = [Group(title, members) for title, members in found.items()]
    if sweep.metric is None:
        return groups
    sign = -1 if sweep.direction == "maximize" else 1
    return sorted(groups, key=lambda group: sign * mean(group.metrics()) if group.metrics() else float("inf"))


def _differences(sweep: Sweep, groups: list[Group]) -> list[dict]:
    """The metric of each configuration minus that of the sweep's first one, paired over the seeds that both have."""
    if not _is_share(sweep) or len(groups) < 2:
        return []
    reference = min(groups, key=lambda group: group.trials[0].trial.number)
    by_seed = {group.title: {view.seed: view.trial.metric for view in group.finished} for group in groups}
    rows = []
    for group in groups:
        one, other = by_seed[group.title], by_seed[reference.title]
        shared = [seed for seed in one if seed is not None and seed in other]
        if group is not reference and len(shared) > 1:
            result = paired_difference([one[seed] for seed in shared], [other[seed] for seed in shared])
            rows.append({"stage": group.title, "reference": reference.title, "set": sweep.metric, **result})
    return rows


def _is_share(sweep: Sweep) -> bool:
    return sweep.metric is not None and sweep.metric.split(".")[1] == "accuracy"


def _number(sweep: Sweep, value: float | None) -> str:
    """A value of the metric as the tables show it."""
    return "–" if value is None else percent(value) if _is_share(sweep) else f"{value:.4g}"


def _plus_minus(values: Sequence[float], say) -> str:
    if not values:
        return "–"
    found = spread(values)
    return say(found["mean"]) + (f" ± {say(found['deviation'])}" if found["deviation"] is not None else "")


def _group_table(sweep: Sweep, groups: list[Group], shown: list[str]) -> tuple[list[str], list[list[str]]]:
    head = ["configuration", "finished"] + ([sweep.metric] if sweep.metric else []) + shown
    rows = []
    for group in groups:
        row = [group.title, f"{len(group.finished)} of {len(group.trials)}"]
        if sweep.metric:
            row.append(_plus_minus(group.metrics(), lambda value: _number(sweep, value)))
        rows.append(row + [_plus_minus(group.accuracies(name), percent) for name in shown] + _cost(group.trials))
    return head + ["time", "stages from the cache"], rows


def _cost(views: list[TrialView]) -> list[str]:
    return [duration(sum(view.trial.seconds for view in views)), str(sum(len(view.cached) for view in views))]


_TRIAL_HEAD = ["trial", "status", "metric", "time", "stages from the cache"]


def _trial_rows(sweep: Sweep, views: list[TrialView]) -> list[list[str]]:
    return [
        [f"{view.trial.number} {view.trial.name}", view.trial.status, _number(sweep, view.trial.metric),
         duration(view.trial.seconds), " ".join(view.cached) or "none"]
        for view in views
    ]  # fmt: skip


def _failed_rows(views: list[TrialView]) -> list[list[str]]:
    return [[view.trial.folder, _message(view.trial)] for view in views if view.trial.status == FAILED]


def _message(trial: Trial) -> str:
    """Why it failed, on one line."""
    return " ".join((trial.error or "").split())


def _csv_head(sweep: Sweep, shown: list[str]) -> list[str]:
    names = ([sweep.metric] if sweep.metric else []) + shown
    numbers = [f"{name} {what}" for name in names for what in ("mean", "deviation", "n")]
    return ["configuration", "trials", "finished", *numbers, "seconds", "cached_stages"]


def _csv_rows(sweep: Sweep, groups: list[Group], shown: list[str]) -> list[list]:
    rows = []
    for group in groups:
        lists = ([group.metrics()] if sweep.metric else []) + [group.accuracies(name) for name in shown]
        numbers = [cell for values in lists for cell in (spread(values).values() if values else ("", "", 0))]
        seconds = round(sum(view.trial.seconds for view in group.trials), 3)
        counts = [len(group.trials), len(group.finished)]
        rows.append([group.title, *counts, *numbers, seconds, sum(len(view.cached) for view in group.trials)])
    return rows


def _trials_csv(sweep: Sweep, views: list[TrialView]) -> list[list]:
    keys = list(dict.fromkeys(key for view in views for key in view.choices))
    names = list(dict.fromkeys(name for view in views for name in view.accuracy))
    fixed = ["number", "configuration", "folder", "status", "seconds", "metric", "cached_stages", "error"]
    rows = [fixed + keys + names]
    for view in views:
        trial = view.trial
        row = [trial.number, trial.group, trial.folder, trial.status, trial.seconds, trial.metric]
        row += [" ".join(view.cached), _message(trial), *(view.choices.get(key) for key in keys)]
        rows.append(row + [view.accuracy.get(name) for name in names])
    return rows


def _csv(rows: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _markdown(sweep: Sweep, views: list[TrialView], head: list[str], rows: list[list[str]], differences: list) -> str:
    parts = [f"# {sweep.name}: {len(views)} trials\n", f"{_said(sweep)}\n", f"{_LEGEND}\n", markdown_table(head, rows)]
    if differences:
        parts += ["\nDifferences in percentage points, paired over the seeds, with 95 % t intervals.\n"]
        parts += [markdown_table(DIFFERENCE_HEAD, difference_rows(differences))]
    if failed := _failed_rows(views):
        parts += ["\nFailed trials.\n", markdown_table(["trial", "message"], failed)]
    parts += ["\nEvery trial.\n", markdown_table(_TRIAL_HEAD, _trial_rows(sweep, views))]
    return "\n".join(parts)


def _said(sweep: Sweep) -> str:
    """What is varied, and what all trials have in common."""
    varied = ", ".join(f"{key} ({how})" if how != "list" else key for key, how in sweep.space.items()) or "nothing"
    metric = f"; best first by {sweep.metric} ({sweep.direction})" if sweep.metric else ""
    return f"Varied: {varied}. The same for all: {' '.join(sweep.fixed) or 'the defaults'}{metric}."


def _page(
    sweep: Sweep, views: list[TrialView], groups: list[Group], shown: list[str],
    head: list[str], rows: list[list[str]], differences: list[dict],
) -> str:  # fmt: skip
    failed = _failed_rows(views)
    done = sum(view.trial.status == FINISHED for view in views)
    items = [("trials finished", f"{done} of {len(views)}", f"{len(failed)} failed")]
    if sweep.metric and groups and groups[0].metrics():
        best = _plus_minus(groups[0].metrics(), lambda value: _number(sweep, value))
        items.insert(0, (f"best {sweep.metric}", best, groups[0].title))
    items.append(("time of all trials", *_cost(views)[:1], f"{_cost(views)[1]} stages came from the cache"))
    return page(
        f"{sweep.name}: {len(views)} trials",
        f"<p>{esc(_said(sweep))}</p><p>Each trial's own report is in its folder.</p>",
        [
            ("summary", "Result", tiles(items)),
            ("accuracy", "Accuracy by configuration", _plot(groups, shown)),
            ("configurations", "Configurations", table(head, rows, _LEGEND)),
            ("differences", "Differences to the first configuration", difference_table(differences)),
            ("failed", "Failed trials", table(["trial", "message"], failed, "The same command runs them again.", 2)
             if failed else ""),
            ("trials", "Every trial", table(_TRIAL_HEAD, _trial_rows(sweep, views), "In the order of the sweep.")),
        ],
    )  # fmt: skip


def _plot(groups: list[Group], shown: list[str]) -> str:
    groups = [group for group in groups if any(group.accuracies(name) for name in shown)]
    first = groups[:_PLOTTED]
    values = {(group.title, name): found for group in first for name in shown if (found := group.accuracies(name))}
    told = "; ".join(f"{title} {name} mean {percent(mean(found))}" for (title, name), found in values.items())
    rest = f" The first {_PLOTTED} of {len(groups)} are shown." if len(groups) > _PLOTTED else ""
    return figure(
        figures.seeds_figure([group.title for group in first], shown, values),
        f"Accuracy by configuration: {told}",
        f"One point a trial, a bar at the mean.{rest}",
    )
