"""The report of a sweep: trials that differ only by seed are one configuration, with its mean and 95 % interval.

Written into the sweep's folder: report.html, summary.md, summary.csv (a row a configuration), trials.csv.
"""

import csv
import dataclasses
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.report.differences import config_rows, config_section, environment_section
from mindspore_impl.report.drawing import standalone
from mindspore_impl.report.figures import duration
from mindspore_impl.report.interval_plot import interval_plot
from mindspore_impl.report.page import esc, figure, page, table, tiles
from mindspore_impl.report.run_files import RunView, read_run
from mindspore_impl.report.statistics import mean, paired_difference, spread
from mindspore_impl.report.sweep_files import FAILED, FINISHED, Sweep, Trial, read_sweep
from mindspore_impl.report.tables import (
    DIFFERENCE_HEAD,
    PAIRED,
    difference_rows,
    difference_table,
    markdown_table,
    percent,
)

_PLOTTED = 40  # configurations; more names would not be legible
FINAL = "final"  # stands for the stage that a run evaluated last, whatever its name
_LEGEND = "Mean [95 % t interval] over the finished trials; accuracy in percent."


@dataclass
class TrialView:
    """A trial with what its run directory holds."""

    trial: Trial
    choices: dict[str, str]  # key: value
    accuracy: dict[str, float] = field(default_factory=dict)  # "STAGE.SET": share in [0, 1]
    cached: list[str] = field(default_factory=list)  # stages that came from a cache
    run: RunView | None = None

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
        """The accuracy STAGE.SET of each finished trial that measured it."""
        return [view.accuracy[name] for view in self.finished if name in view.accuracy]


@dataclass
class _Report:
    """What all forms of the report show."""

    sweep: Sweep
    views: list[TrialView]
    groups: list[Group]
    shown: list[str]  # accuracies worth a column, "STAGE.SET"
    differences: list[dict]


def write_sweep_report(folder: str | Path, plot: str | Path | None = None) -> Path:
    """Write the report of the sweep in `folder`, finished or not, from its files alone; return the path of the page.

    plot: an SVG file for the plot of its configurations alone, legible on light and dark pages. Raises UserError when
    the folder is no sweep's or one of its files is damaged, and when no trial has a number for the plot yet.
    """
    folder = Path(folder)
    report = _read(folder)
    files.write_text(folder / "summary.csv", _csv([_csv_head(report), *_csv_rows(report)]))
    files.write_text(folder / "trials.csv", _csv(_trials_csv(report.views)))
    files.write_text(folder / "summary.md", _markdown(report))
    files.write_text(folder / "report.html", _page(report))
    if plot is not None:
        drawn = interval_plot(_plotted(report)[0], report.shown)
        if drawn is None:
            raise UserError(f"{folder}: no trial has measured an accuracy yet, so there is nothing to plot")
        files.write_text(plot, standalone(drawn))
    return folder / "report.html"


def _read(folder: Path) -> _Report:
    sweep = read_sweep(folder)
    views, shown = _read_trials(folder, sweep)
    groups = _grouped(sweep, views)
    return _Report(sweep, views, groups, shown, _differences(sweep, groups, shown))


def _read_trials(folder: Path, sweep: Sweep) -> tuple[list[TrialView], list[str]]:
    """Every trial, and the accuracies that get a column.

    These are those of the stages that the runs compare, or of the last stage; of each run's last stage where the runs
    end differently.
    """
    views, shown = [], {}
    for trial in sweep.trials:
        choices = dict(text.partition("=")[::2] for text in trial.overrides)
        view = TrialView(trial, choices)
        if (folder / trial.folder / "config.yaml").is_file():
            run = read_run(folder / trial.folder)
            view.run = dataclasses.replace(run, stages=[])  # logs and answers of all trials would fill the memory
            view.cached = [stage.name for stage in run.stages if stage.cached]
            last = [(FINAL, run.last_evaluated)] if run.last_evaluated else []
            view.accuracy = {
                f"{title}.{name}": result["accuracy"]
                for title, stage in [*((stage.measured, stage) for stage in run.stages), *last]
                for name, result in stage.accuracy.items()
            }
            if trial.status == FINISHED:
                shown |= dict.fromkeys(_headline(run))
        views.append(view)
    finished = [view for view in views if view.trial.status == FINISHED]
    if any(name not in view.accuracy for view in finished for name in shown):
        measured = (name for view in finished for name in view.accuracy if name.startswith(f"{FINAL}."))
        shown = dict.fromkeys(sorted(set(measured), key=lambda name: ("reasoning" not in name, name)))
    return views, list(shown)


def _headline(run: RunView) -> list[str]:
    wanted = set(run.config.get("compare") or []) or {run.last_evaluated.measured if run.last_evaluated else None}
    return [f"{stage.measured}.{name}" for stage in run.stages if stage.measured in wanted for name in stage.accuracy]


def _grouped(sweep: Sweep, views: list[TrialView]) -> list[Group]:
    """Configurations, the best first.

    In the order of the trials where there is no metric, or the sweep names pairs or labels.
    """
    found: dict[str, list[TrialView]] = {}
    for view in views:
        found.setdefault(view.trial.group, []).append(view)
    groups = [Group(_labelled(title, sweep.labels), members) for title, members in found.items()]
    if not _ranked(sweep):
        return groups
    sign = -1 if sweep.direction == "maximize" else 1
    return sorted(groups, key=lambda group: sign * mean(group.metrics()) if group.metrics() else float("inf"))


def _ranked(sweep: Sweep) -> bool:
    return sweep.metric is not None and not (sweep.compare or sweep.labels)


def _labelled(title: str, names: dict[str, str]) -> str:
    """A configuration's title with its trial's name replaced by what `names` has for it."""
    name, comma, rest = title.partition(", ")
    return names.get(name, name) + comma + rest


def _references(compare: dict[str, list[str]], group: Group, groups: list[Group]) -> list[Group]:
    """The configurations that `group` is held against."""
    if not compare:
        first = min(groups, key=lambda one: one.trials[0].trial.number)
        return [] if first is group else [first]
    own = group.trials[0].trial.group
    name, comma, rest = own.partition(", ")
    wanted = [reference + comma + rest for reference in compare.get(name, []) if reference != name]
    return [one for title in wanted for one in groups if one.trials[0].trial.group == title]


def _differences(sweep: Sweep, groups: list[Group], shown: list[str]) -> list[dict]:
    """The accuracies of each configuration minus those of its references, paired over the seeds that both have."""
    rows = []
    for group in groups:
        against = _references(sweep.compare, group, groups)
        for reference, name in itertools.product(against, _compared(sweep, shown)):
            one, other = ({v.seed: value for v in each.finished if (value := _value(sweep, v, name)) is not None}
                          for each in (group, reference))  # fmt: skip
            shared = [seed for seed in one if seed is not None and seed in other]
            if len(shared) > 1:
                result = paired_difference([one[seed] for seed in shared], [other[seed] for seed in shared])
                rows.append({"stage": group.title, "reference": reference.title, "set": name, **result})
    return rows


def _compared(sweep: Sweep, shown: list[str]) -> list[str]:
    """The metrics to compare: the sweep's own if it is an accuracy and everything is compared with the first trial.

    Else every accuracy with a column.
    """
    if sweep.compare:
        return shown
    return [sweep.metric] if _is_share(sweep) else []


def _value(sweep: Sweep, view: TrialView, name: str) -> float | None:
    return view.trial.metric if name == sweep.metric else view.accuracy.get(name)


def _is_share(sweep: Sweep) -> bool:
    return sweep.metric is not None and sweep.metric.split(".")[1] == "accuracy"


def _number(sweep: Sweep, value: float | None) -> str:
    """A value of the metric as the tables show it."""
    return "–" if value is None else percent(value) if _is_share(sweep) else f"{value:.4g}"


def _interval(values: Sequence[float], say) -> str:
    if not values:
        return "–"
    found = spread(values)
    bounds = "" if found["low"] is None else f" [{say(found['low'])}, {say(found['high'])}]"
    return say(found["mean"]) + bounds


def _has_column(sweep: Sweep, shown: list[str]) -> bool:
    """Whether the metric has a column of its own: not where it is one of the accuracies."""
    return sweep.metric is not None and sweep.metric.replace(".accuracy.", ".") not in shown


def _group_table(report: _Report) -> tuple[list[str], list[list[str]]]:
    sweep, shown = report.sweep, report.shown
    own = [sweep.metric] if _has_column(sweep, shown) else []
    rows = []
    for group in report.groups:
        row = [group.title, f"{len(group.finished)} of {len(group.trials)}"]
        row += [_interval(group.metrics(), lambda value: _number(sweep, value)) for _ in own]
        rows.append(row + [_interval(group.accuracies(name), percent) for name in shown] + _cost(group.trials))
    return ["configuration", "finished (n)", *own, *shown, "time", "stages from the cache"], rows


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


_NUMBERS = ("mean", "deviation", "low", "high", "n")


def _csv_head(report: _Report) -> list[str]:
    names = ([report.sweep.metric] if report.sweep.metric else []) + report.shown
    numbers = [f"{name} {what}" for name in names for what in _NUMBERS]
    return ["configuration", "trials", "finished", *numbers, "seconds", "cached_stages"]


def _csv_rows(report: _Report) -> list[list]:
    rows = []
    for group in report.groups:
        lists = ([group.metrics()] if report.sweep.metric else []) + [group.accuracies(name) for name in report.shown]
        found = [spread(values) if values else {"n": 0} for values in lists]
        numbers = [one.get(what, "") for one in found for what in _NUMBERS]
        seconds = round(sum(view.trial.seconds for view in group.trials), 3)
        counts = [len(group.trials), len(group.finished)]
        rows.append([group.title, *counts, *numbers, seconds, sum(len(view.cached) for view in group.trials)])
    return rows


def _trials_csv(views: list[TrialView]) -> list[list]:
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


def _markdown(report: _Report) -> str:
    sweep, views = report.sweep, report.views
    parts = [f"# {sweep.name}: {len(views)} trials\n", f"{_said(sweep)}\n", f"{_LEGEND}\n"]
    parts.append(markdown_table(*_group_table(report)))
    if report.differences:
        parts += [f"\nDifferences in percentage points, {PAIRED}\n"]
        parts += [markdown_table(DIFFERENCE_HEAD, difference_rows(report.differences))]
    if failed := _failed_rows(views):
        parts += ["\nFailed trials.\n", markdown_table(["trial", "message"], failed)]
    parts += ["\nEvery trial.\n", markdown_table(_TRIAL_HEAD, _trial_rows(sweep, views))]
    return "\n".join(parts)


def _said(sweep: Sweep) -> str:
    """What is varied, and what all trials have in common."""
    varied = ", ".join(f"{key} ({how})" if how != "list" else key for key, how in sweep.space.items()) or "nothing"
    order = "best first" if _ranked(sweep) else "judged"
    metric = f"; {order} by {sweep.metric} ({sweep.direction})" if sweep.metric else ""
    return f"Varied: {varied}. The same for all: {' '.join(sweep.fixed) or 'the defaults'}{metric}."


def _page(report: _Report) -> str:
    sweep, views, groups = report.sweep, report.views, report.groups
    failed = _failed_rows(views)
    done = sum(view.trial.status == FINISHED for view in views)
    items = [("trials finished", f"{done} of {len(views)}", f"{len(failed)} failed")]
    if best := _best(sweep, groups):
        said = _interval(best.metrics(), lambda value: _number(sweep, value))
        items.insert(0, (f"best {sweep.metric}", said, best.title))
    items.append(("time of all trials", *_cost(views)[:1], f"{_cost(views)[1]} stages came from the cache"))
    against = "their references" if sweep.compare else "the first configuration"
    return page(
        f"{sweep.name}: {len(views)} trials",
        f"<p>{esc(_said(sweep))}</p><p>Each trial's own report is in its folder.</p>",
        [
            ("summary", "Result", tiles(items)),
            ("accuracy", "Accuracy by configuration", _plot(report)),
            ("configurations", "Configurations", table(*_group_table(report), _LEGEND)),
            ("differences", f"Differences to {against}", difference_table(report.differences)),
            ("failed", "Failed trials", table(["trial", "message"], failed, "The same command runs them again.", 2)
             if failed else ""),
            ("trials", "Every trial", table(_TRIAL_HEAD, _trial_rows(sweep, views), "In the order of the sweep.")),
            ("config", "What the configurations change", config_section(_config_rows(sweep, groups))),
            ("environment", "Hardware and versions", environment_section([v.run for v in views if v.run])),
        ],
    )  # fmt: skip


def _best(sweep: Sweep, groups: list[Group]) -> Group | None:
    """The configuration with the best mean of the metric."""
    judged = [group for group in groups if group.metrics()] if sweep.metric else []
    choose = max if sweep.direction == "maximize" else min
    return choose(judged, key=lambda group: mean(group.metrics()), default=None)


def _config_rows(sweep: Sweep, groups: list[Group]) -> list[list[str]]:
    """How the first run of each configuration differs from that of its first reference, or from the sweep's first."""
    rows = []
    for group in groups:
        for reference in (_references(sweep.compare, group, groups) or _references({}, group, groups))[:1]:
            runs = [next((view.run for view in one.trials if view.run), None) for one in (group, reference)]
            if all(runs):
                rows += config_rows(group.title, runs[0], reference.title, runs[1])
    return rows


def _plotted(report: _Report) -> tuple[list[tuple[str, dict]], int]:
    """The rows of the plot, and how many configurations there would be."""
    rows = [(group.title, {name: group.accuracies(name) for name in report.shown}) for group in report.groups]
    rows = [row for row in rows if any(row[1].values())]
    return rows[:_PLOTTED], len(rows)


def _plot(report: _Report) -> str:
    rows, total = _plotted(report)
    told = "; ".join(
        f"{title} {name} {_interval(found, percent)}"
        for title, values in rows
        for name, found in values.items()
        if found
    )
    rest = f" The first {len(rows)} of {total} are shown." if total > len(rows) else ""
    return figure(
        interval_plot(rows, report.shown),
        f"Accuracy by configuration: {told}",
        f"A mark at the mean of each configuration, a line for its 95 % t interval, a point for each seed.{rest}",
    )
