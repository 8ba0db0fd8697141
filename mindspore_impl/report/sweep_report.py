"""Write the report of a sweep: report.html, summary.md, summary.csv (a row a configuration) and trials.csv.

Trials that differ only by seed are one configuration, with its mean and 95 % interval.
"""

import csv
import dataclasses
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from markupsafe import Markup

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.report import render
from mindspore_impl.report.drawing import standalone
from mindspore_impl.report.figures import interval_figure
from mindspore_impl.report.run_files import RunView, read_run
from mindspore_impl.report.statistics import paired_difference, spread
from mindspore_impl.report.sweep_files import FAILED, FINAL, FINISHED, Sweep, Trial, read_sweep

_PLOTTED = 40  # configurations; more names would not be legible
_LEGEND = "Mean [95 % t interval] over the finished trials; accuracy in percent."
_NUMBERS = ("mean", "deviation", "low", "high", "n")
_NOT_COMPARED = ("run_dir", "runtime", "seed", "seeds", "sweep", "name")  # keys of config.yaml
_MOST_CHANGES = 200  # rows
_FAILED_HEAD = ["trial", "message"]


@dataclass
class TrialView:
    """A trial with what its run directory holds."""

    trial: Trial
    choices: dict[str, str]  # key: value
    values: dict[str, float] = field(default_factory=dict)  # the metric, and "STAGE.SET": accuracy in [0, 1]
    cached: list[str] = field(default_factory=list)  # stages that came from a cache
    run: RunView | None = None  # without its stages
    headline: list[str] = field(default_factory=list)  # accuracies of the stages that the run compares


@dataclass
class Group:
    """The trials of one configuration."""

    name: str  # its trials' choices without the seed
    title: str  # the name, with a label in place of the trial's name
    trials: list[TrialView] = field(default_factory=list)

    @property
    def finished(self) -> list[TrialView]:
        """Those that count."""
        return [view for view in self.trials if view.trial.status == FINISHED]

    def values(self, name: str | None) -> list[float]:
        """The metric or accuracy `name` of each finished trial that has one."""
        return [view.values[name] for view in self.finished if name in view.values]


@dataclass
class _Report:
    """What all forms of the report show."""

    sweep: Sweep
    views: list[TrialView]
    groups: list[Group]
    shown: list[str]  # accuracies worth a column, "STAGE.SET"
    differences: list[dict]

    @property
    def failed(self) -> list[list[str]]:
        """Rows under _FAILED_HEAD."""
        failed = [view.trial for view in self.views if view.trial.status == FAILED]
        return [[trial.folder, _message(trial)] for trial in failed]


def write_sweep_report(folder: str | Path, plot: str | Path | None = None) -> Path:
    """Write the report of the sweep in `folder`, finished or not, from its files alone; return the path of the page.

    plot: an SVG file for the plot of its configurations alone. Raises UserError when the folder is no sweep's, a file
    is damaged, or no trial has a number to plot yet.
    """
    folder = Path(folder)
    report = _read(folder)
    files.write_text(folder / "summary.csv", _csv(_summary_csv(report)))
    files.write_text(folder / "trials.csv", _csv(_trials_csv(report)))
    files.write_text(folder / "summary.md", _markdown(report))
    files.write_text(folder / "report.html", _page(report))
    if plot is not None:
        drawn = interval_figure(_plotted(report)[:_PLOTTED], report.shown)
        if drawn is None:
            raise UserError(f"{folder}: no trial has measured an accuracy yet, so there is nothing to plot")
        files.write_text(plot, standalone(drawn))
    return folder / "report.html"


def _read(folder: Path) -> _Report:
    sweep = read_sweep(folder)
    views = [_read_trial(folder, trial, sweep.metric) for trial in sweep.trials]
    groups = _grouped(sweep, views)
    shown = _shown([view for view in views if view.trial.status == FINISHED])
    return _Report(sweep, views, groups, shown, _differences(sweep, groups, shown))


def _read_trial(folder: Path, trial: Trial, metric: str | None) -> TrialView:
    view = TrialView(trial, dict(text.partition("=")[::2] for text in trial.overrides))
    if (folder / trial.folder / "config.yaml").is_file():
        run = read_run(folder / trial.folder)
        view.run = dataclasses.replace(run, stages=[])  # logs and answers of all trials would fill the memory
        view.cached = [stage.name for stage in run.stages if stage.cached]
        titled = [(stage.subject, stage) for stage in run.stages]
        if run.last_evaluated:
            titled.append((FINAL, run.last_evaluated))
        for title, stage in titled:
            view.values |= {f"{title}.{name}": found["accuracy"] for name, found in stage.accuracy.items()}
        view.headline = [f"{stage.subject}.{name}" for stage in run.compared for name in stage.accuracy]
    if metric and trial.metric is not None:
        view.values[metric] = trial.metric
    return view


def _shown(finished: list[TrialView]) -> list[str]:
    """The accuracies that get a column: of the stages that the runs compare, or of each last one where runs differ."""
    shown = list(dict.fromkeys(name for view in finished for name in view.headline))
    if all(name in view.values for view in finished for name in shown):
        return shown
    measured = {name for view in finished for name in view.values if name.startswith(f"{FINAL}.")}
    return sorted(measured, key=lambda name: ("reasoning" not in name, name))


def _grouped(sweep: Sweep, views: list[TrialView]) -> list[Group]:
    """The configurations: the best first where they are ranked, else in the order of the trials."""
    found: dict[str, Group] = {}
    for view in views:
        group = view.trial.group
        name, comma, rest = group.partition(", ")
        found.setdefault(group, Group(group, sweep.labels.get(name, name) + comma + rest)).trials.append(view)
    groups = list(found.values())
    if not _ranked(sweep):
        return groups
    sign = -1 if sweep.direction == "maximize" else 1
    means = {group.name: fmean(values) for group in groups if (values := group.values(sweep.metric))}
    return sorted(groups, key=lambda group: sign * means[group.name] if group.name in means else float("inf"))


def _ranked(sweep: Sweep) -> bool:
    """Whether there is a metric, and the sweep names no pairs or labels."""
    return sweep.metric is not None and not (sweep.compare or sweep.labels)


def _references(compare: dict[str, list[str]], group: Group, groups: list[Group]) -> list[Group]:
    """The configurations that `group` is compared with: the first of the sweep, unless `compare` names others."""
    if not compare:
        first = min(groups, key=lambda one: one.trials[0].trial.number)
        return [] if first is group else [first]
    name, comma, rest = group.name.partition(", ")
    wanted = [reference + comma + rest for reference in compare.get(name, []) if reference != name]
    return [one for title in wanted for one in groups if one.name == title]


def _differences(sweep: Sweep, groups: list[Group], shown: list[str]) -> list[dict]:
    """Each configuration minus its references, paired over seeds: shown accuracies of named pairs, else the metric."""
    names = shown if sweep.compare else [sweep.metric] if _is_share(sweep) else []
    rows = []
    for group in groups:
        for reference, name in itertools.product(_references(sweep.compare, group, groups), names):
            one, other = (
                {view.choices.get("seed"): view.values[name] for view in each.finished if name in view.values}
                for each in (group, reference)
            )
            shared = [seed for seed in one if seed is not None and seed in other]
            if len(shared) > 1:
                result = paired_difference([one[seed] for seed in shared], [other[seed] for seed in shared])
                rows.append({"stage": group.title, "reference": reference.title, "set": name, **result})
    return rows


def _is_share(sweep: Sweep) -> bool:
    return sweep.metric is not None and sweep.metric.split(".")[1] == "accuracy"


def _metric_text(sweep: Sweep) -> Callable[[float | None], str]:
    """How the tables print a value of the metric."""
    return render.percent if _is_share(sweep) else lambda value: "–" if value is None else f"{value:.4g}"


def _interval(values: Sequence[float], text_of: Callable[[float], str] = render.percent) -> str:
    if not values:
        return "–"
    found = spread(values)
    bounds = "" if found["low"] is None else f" [{text_of(found['low'])}, {text_of(found['high'])}]"
    return text_of(found["mean"]) + bounds


def _group_table(report: _Report) -> tuple[list[str], list[list[str]]]:
    metric, shown = report.sweep.metric, report.shown
    own = [metric] if metric and metric.replace(".accuracy.", ".") not in shown else []
    rows = []
    for group in report.groups:
        row = [group.title, f"{len(group.finished)} of {len(group.trials)}"]
        row += [_interval(group.values(name), _metric_text(report.sweep)) for name in own]
        row += [_interval(group.values(name)) for name in shown]
        seconds, cached = _totals(group.trials)
        rows.append([*row, render.duration(seconds), str(cached)])
    return ["configuration", "finished (n)", *own, *shown, "time", "stages from the cache"], rows


def _totals(views: list[TrialView]) -> tuple[float, int]:
    """Seconds of trials, and their stages from a cache."""
    return sum(view.trial.seconds for view in views), sum(len(view.cached) for view in views)


def _trial_table(report: _Report) -> tuple[list[str], list[list[str]]]:
    text_of = _metric_text(report.sweep)
    rows = []
    for view in report.views:
        trial, cached = view.trial, " ".join(view.cached) or "none"
        name = f"{trial.number} {trial.name}"
        rows.append([name, trial.status, text_of(trial.metric), render.duration(trial.seconds), cached])
    return ["trial", "status", "metric", "time", "stages from the cache"], rows


def _message(trial: Trial) -> str:
    """Why it failed, on one line."""
    return " ".join((trial.error or "").split())


def _summary_csv(report: _Report) -> list[list]:
    names = ([report.sweep.metric] if report.sweep.metric else []) + report.shown
    numbers = [f"{name} {what}" for name in names for what in _NUMBERS]
    rows = [["configuration", "trials", "finished", *numbers, "seconds", "cached_stages"]]
    for group in report.groups:
        found = [spread(values) if (values := group.values(name)) else {"n": 0} for name in names]
        row = [group.title, len(group.trials), len(group.finished)]
        row += [one.get(what, "") for one in found for what in _NUMBERS]
        seconds, cached = _totals(group.trials)
        rows.append([*row, round(seconds, 3), cached])
    return rows


def _trials_csv(report: _Report) -> list[list]:
    keys = list(dict.fromkeys(key for view in report.views for key in view.choices))
    names = list(dict.fromkeys(name for view in report.views for name in view.values if name != report.sweep.metric))
    fixed = ["number", "configuration", "folder", "status", "seconds", "metric", "cached_stages", "error"]
    rows = [fixed + keys + names]
    for view in report.views:
        trial = view.trial
        row = [trial.number, trial.group, trial.folder, trial.status, trial.seconds, trial.metric]
        row += [" ".join(view.cached), _message(trial), *(view.choices.get(key) for key in keys)]
        rows.append(row + [view.values.get(name) for name in names])
    return rows


def _csv(rows: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _markdown(report: _Report) -> str:
    parts = [f"# {report.sweep.name}: {len(report.views)} trials\n", f"{_subtitle(report.sweep)}\n", f"{_LEGEND}\n"]
    parts += [render.markdown_table(*_group_table(report)), *render.difference_markdown(report.differences)]
    if report.failed:
        parts += ["\nFailed trials.\n", render.markdown_table(_FAILED_HEAD, report.failed)]
    parts += ["\nEvery trial.\n", render.markdown_table(*_trial_table(report))]
    return "\n".join(parts)


def _subtitle(sweep: Sweep) -> str:
    """What is varied, and what all trials have in common."""
    varied = ", ".join(f"{key} ({how})" if how != "list" else key for key, how in sweep.space.items()) or "nothing"
    order = "best first" if _ranked(sweep) else "judged"
    metric = f"; {order} by {sweep.metric} ({sweep.direction})" if sweep.metric else ""
    return f"Varied: {varied}. The same for all: {' '.join(sweep.fixed) or 'the defaults'}{metric}."


def _page(report: _Report) -> str:
    sweep, views = report.sweep, report.views
    failed = render.table(_FAILED_HEAD, report.failed, "The same command runs them again.", 2)
    done = sum(view.trial.status == FINISHED for view in views)
    items = [("trials finished", f"{done} of {len(views)}", f"{len(report.failed)} failed")]
    if best := _best(report):
        items.insert(0, (f"best {sweep.metric}", _interval(best.values(sweep.metric), _metric_text(sweep)), best.title))
    seconds, cached = _totals(views)
    items.append(("time of all trials", render.duration(seconds), f"{cached} stages came from the cache"))
    references = "their references" if sweep.compare else "the first configuration"
    return render.page(
        f"{sweep.name}: {len(views)} trials",
        render.paragraphs(_subtitle(sweep), "Each trial's own report is in its folder."),
        [
            ("summary", "Result", render.tiles(items)),
            ("accuracy", "Accuracy by configuration", _plot(report)),
            ("configurations", "Configurations", render.table(*_group_table(report), _LEGEND)),
            ("differences", f"Differences from {references}", render.difference_table(report.differences)),
            ("failed", "Failed trials", failed),
            ("trials", "Every trial", render.table(*_trial_table(report), "In the order of the sweep.")),
            ("config", "What the configurations change", _changes(report)),
            ("environment", "Hardware and versions", _environment([view.run for view in views if view.run])),
        ],
    )


def _best(report: _Report) -> Group | None:
    """The configuration with the best mean of the metric."""
    metric = report.sweep.metric
    judged = [group for group in report.groups if group.values(metric)]
    choose = max if report.sweep.direction == "maximize" else min
    return choose(judged, key=lambda group: fmean(group.values(metric)), default=None)


def _plotted(report: _Report) -> list[tuple[str, dict]]:
    """The rows of the plot: configurations that have an accuracy with a column."""
    rows = [(group.title, {name: group.values(name) for name in report.shown}) for group in report.groups]
    return [row for row in rows if any(row[1].values())]


def _plot(report: _Report) -> Markup:
    rows = _plotted(report)
    total, rows = len(rows), rows[:_PLOTTED]
    values = "; ".join(
        f"{title} {name} {_interval(found)}" for title, values in rows for name, found in values.items() if found
    )
    rest = f" The first {len(rows)} of {total} are shown." if total > len(rows) else ""
    return render.figure(
        interval_figure(rows, report.shown),
        f"Accuracy by configuration: {values}",
        f"A mark at the mean of each configuration, a line for its 95 % t interval, a point for each seed.{rest}",
    )


def _changes(report: _Report) -> Markup:
    """How config.yaml of each configuration's first run differs from that of its first reference, or of the first."""
    rows = []
    for group in report.groups:
        references = _references(report.sweep.compare, group, report.groups) or _references({}, group, report.groups)
        for reference in references[:1]:
            runs = [next((view.run for view in one.trials if view.run), None) for one in (group, reference)]
            if all(runs):
                one, other = (_flat(run.config) for run in runs)
                keys = [key for key in dict.fromkeys([*other, *one]) if one.get(key) != other.get(key)]
                rows += [[group.title, reference.title, key, one.get(key, "–"), other.get(key, "–")] for key in keys]
    left_out = f" {len(rows) - _MOST_CHANGES} more are left out." if len(rows) > _MOST_CHANGES else ""
    head = ["configuration", "against", "key", "value", "value there"]
    caption = f"Keys of config.yaml whose values differ, seed and folder apart.{left_out}"
    return render.table(head, rows[:_MOST_CHANGES], caption, text_columns=5)


def _flat(value, key: str = "") -> dict[str, str]:
    """{"a.b": JSON of the value} of nested mappings, without the keys of _NOT_COMPARED."""
    if not isinstance(value, dict) or not value:
        return {key: json.dumps(value, ensure_ascii=False, default=str)}
    flat = {}
    for name, inner in value.items():
        if key or name not in _NOT_COMPARED:
            flat |= _flat(inner, f"{key}.{name}" if key else str(name))
    return flat


def _environment(runs: list[RunView]) -> Markup:
    """Hardware, versions and commits of all runs: one row where they agree, else one for each value."""
    found: dict[str, Counter] = {}
    for run in runs:
        values = {"device": run.environment["device"], "commit": run.environment["commit"] or "not recorded"}
        for key, value in (values | run.environment["versions"]).items():
            found.setdefault(key, Counter())[str(value)] += 1
    rows = [[key, value, f"{n} of {len(runs)}"] for key, counts in found.items() for value, n in counts.items()]
    return render.table(["what", "value", "trials"], rows, "Where the numbers above were measured.", text_columns=2)
