"""The plots of the reports, as SVG text in the colours of the page (see `drawing`)."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from mindspore_impl.report import drawing
from mindspore_impl.report.render import PALETTE, count, duration
from mindspore_impl.report.run_files import StageView
from mindspore_impl.report.statistics import spread

_MAX_POINTS = 500  # of one line; more are averaged in bins


def loss_figure(stages: list[StageView]) -> str | None:
    """Training loss of every stage on one axis of steps, stage borders, and validation points. None without data."""
    spans = _spans([stage for stage in stages if stage.trained and (stage.log or stage.validations)])
    if not spans:
        return None
    validated = sorted({name for stage, _, _ in spans for _, sets in stage.validations for name in sets})

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for stage, first, _ in spans:
            _line(axes, stage, first, "loss", "training loss")
            if stage.logged("kd"):
                _line(axes, stage, first, "ce", "cross-entropy part of it", dashes=(4, 2), width=1.1)
            for name in validated:
                points = [(first + step, sets[name].get("loss")) for step, sets in stage.validations if name in sets]
                points = [(x, y) for x, y in points if drawing.finite(y)]
                label = name if name.startswith("validation") else f"validation, {name}"
                if points:
                    colour, marker = drawing.set_style(name, validated)
                    style = {"color": PALETTE[colour][0], "marker": marker, "linestyle": (0, (1, 2)), "markersize": 5.5}
                    axes.plot(*zip(*points, strict=True), lw=1, zorder=3, **style, label=label)
        drawing.log_if_wide(axes)
        _borders(axes, spans)
        axes.set(xlabel="training step, counted over all stages", ylabel="loss (nats a token)")
        drawing.finish_legend(axes)

    return drawing.svg_of("loss", draw, 9.0, 4.0)


def accuracy_figure(stages: list[StageView]) -> str | None:
    """Accuracy of each set after each evaluated stage, with 95 % intervals. None without data."""
    stages = [stage for stage in stages if stage.accuracy]
    names = sorted({name for stage in stages for name in stage.accuracy})
    if not names:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        step = min(0.16, 0.5 / len(names))
        for number, name in enumerate(names):
            colour, marker = drawing.set_style(name, names)
            offset = (number - (len(names) - 1) / 2) * step
            found = [(x, stage.accuracy[name]) for x, stage in enumerate(stages) if name in stage.accuracy]
            xs = [x + offset for x, _ in found]
            ys = [100 * value["accuracy"] for _, value in found]
            below = [max(0.0, y - 100 * value["low"]) for y, (_, value) in zip(ys, found, strict=True)]
            above = [max(0.0, 100 * value["high"] - y) for y, (_, value) in zip(ys, found, strict=True)]
            style = {"color": PALETTE[colour][0], "marker": marker, "markersize": 7, "capsize": 4, "elinewidth": 1.6}
            axes.errorbar(xs, ys, yerr=[below, above], linestyle="none", label=name, **style)
            side = -1 if number < len(names) / 2 else 1
            for x, y in zip(xs, ys, strict=True):
                place = {"ha": "right" if side < 0 else "left", "va": "center", "textcoords": "offset points"}
                axes.annotate(f"{y:.0f}", (x, y), (7 * side, 0), fontsize=9, **place)
        _stage_axis(axes, [stage.subject for stage in stages])
        axes.set(ylim=(-4, 104), ylabel="accuracy (%)")
        drawing.finish_legend(axes)

    return drawing.svg_of("accuracy", draw, 9.0, 3.8)


def distill_figure(stages: list[StageView], supports: list[str]) -> str | None:
    """CE and KD, mass on the support, teacher entropy and top-1 agreement of `stages`, which log kd. None without."""
    spans = _spans(stages)
    if not spans:
        return None
    panels = [
        ("cross-entropy and divergence (nats)", {"ce": "CE, labels", "kd": "KD, teacher"}),
        (f"mass on the support: {'; '.join(supports)}", {"teacher_mass": "teacher", "student_mass": "student"}),
        ("teacher entropy (nats)", {"teacher_entropy": "teacher entropy"}),
        ("top-1 agreement of student and teacher", {"agreement": "agreement"}),
    ]

    def draw(figure: Figure) -> None:
        for number, (title, metrics) in enumerate(panels, start=1):
            axes = figure.add_subplot(2, 2, number)
            for stage, first, _ in spans:
                for place, (metric, label) in enumerate(metrics.items()):
                    _line(axes, stage, first, metric, label, dashes=(4, 2) if place else None)
            _borders(axes, spans, labels=len(spans) > 1)
            axes.set_title(title, pad=20 if len(spans) > 1 else 8)
            if number > 2:
                axes.set_xlabel("distillation step")
            if len(metrics) > 1:
                drawing.finish_legend(axes, inside=True)

    return drawing.svg_of("kd", draw, 9.0, 5.6)


def difficulty_figure(changes: list[tuple[str, dict]], orders: list[tuple[str, dict]]) -> str | None:
    """Histograms of sets before and after their difficulty band, and a line for each order. None without data.

    changes: (title, difficulty.change); orders: (title, {"by", "means"}), the means of parts of an epoch.
    """
    panels = len(changes) + len(orders)
    if not panels:
        return None
    columns = min(3, panels)
    lines = -(-panels // columns)

    def draw(figure: Figure) -> None:
        grid = [figure.add_subplot(lines, columns, number + 1) for number in range(panels)]
        for axes, (title, change) in zip(grid, changes, strict=False):
            edges = change["edges"]
            axes.stairs(change["counts_before"], edges, color=PALETTE["grey"][0], lw=1.4, label="whole set")
            axes.stairs(change["counts_after"], edges, color=PALETTE["blue"][0], fill=True, label="trained on")
            axes.set(title=drawing.short(title, 36), xlabel=change["field"], ylabel="records")
            drawing.finish_legend(axes, inside=True)
        for axes, (title, order) in zip(grid[len(changes) :], orders, strict=True):
            parts = [(part + 0.5) / len(order["means"]) for part in range(len(order["means"]))]
            axes.plot(parts, order["means"], color=PALETTE["vermillion"][0], marker="o", markersize=4, lw=1.6)
            axes.set(title=drawing.short(title, 36), xlabel="share of an epoch", ylabel=f"mean {order['by']}")

    return drawing.svg_of("difficulty", draw, 9.0, 0.5 + 2.6 * lines)


def cost_figure(stages: list[StageView]) -> str | None:
    """Wall-clock time and tokens of each stage, as horizontal bars. None without data."""
    stages = [stage for stage in stages if stage.seconds is not None]
    if not stages:
        return None

    def draw(figure: Figure) -> None:
        left = figure.add_subplot(1, 2, 1)
        right = figure.add_subplot(1, 2, 2, sharey=left)
        rows = range(len(stages))
        for axes, metric, title, say in ((left, "seconds", "time", duration), (right, "tokens", "tokens", count)):
            values = [getattr(stage, metric) or 0 for stage in stages]
            axes.barh(rows, values, height=0.62, color=PALETTE[drawing.METRIC_COLOURS[metric]][0])
            for row, value in zip(rows, values, strict=True):
                text = say(value) if value else "none"
                axes.annotate(text, (value, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
            axes.set(title=title, xlim=(0, 1.28 * max(values, default=1) or 1))
            axes.xaxis.set_visible(False)
            axes.grid(False)
            axes.spines["bottom"].set_visible(False)
        left.set_yticks(rows, [drawing.short(f"{stage.number} {stage.name}", 28) for stage in stages])
        left.invert_yaxis()
        right.tick_params(labelleft=False)

    return drawing.svg_of("cost", draw, 9.0, 0.9 + 0.34 * len(stages))


def interval_figure(rows: Sequence[tuple[str, dict[str, list[float]]]], measures: list[str]) -> str | None:
    """Configurations or stages from top to bottom: their seeds as points, mean and 95 % t interval. None without data.

    rows: (name, {measure: shares in [0, 1], one a seed}); each measure has a panel.
    """
    measures = [measure for measure in measures if any(values.get(measure) for _, values in rows)]
    if not measures:
        return None

    def draw(figure: Figure) -> None:
        first = None
        for number, measure in enumerate(measures, start=1):
            axes = first = figure.add_subplot(1, len(measures), number, sharey=first)
            colour, marker = drawing.set_style(measure, measures)
            for row, (_, values) in enumerate(rows):
                if values.get(measure):
                    _interval(axes, row, values[measure], PALETTE[colour][0], marker)
            axes.set(title=drawing.short(measure.removeprefix("final."), 70 // len(measures)), xlabel="accuracy (%)")
            if number > 1:
                axes.tick_params(labelleft=False)
            else:
                axes.set_yticks(range(len(rows)), [drawing.short(title, 44) for title, _ in rows])
                axes.set_ylim(len(rows) - 0.5, -0.5)

    return drawing.svg_of("intervals", draw, 9.0, 1.1 + 0.32 * len(rows))


def calibration_figure(measured: list[tuple[str, dict[str, dict]]]) -> str | None:
    """Reliability diagrams, one a stage, of (stage, {set: {"tokens", "bins": [{"confidence", ...}]}}); or None."""
    if not measured:
        return None
    names = sorted({name for _, found in measured for name in found})
    columns = min(3, len(measured))
    lines = -(-len(measured) // columns)

    def draw(figure: Figure) -> None:
        for number, (stage, found) in enumerate(measured, start=1):
            axes = figure.add_subplot(lines, columns, number)
            axes.plot([0, 1], [0, 1], color=PALETTE["grey"][0], lw=1, dashes=(3, 3))
            for name, value in found.items():
                colour, marker = drawing.set_style(name, names)
                xs, ys = ([each[key] for each in value["bins"]] for key in ("confidence", "accuracy"))
                sizes = [12 + 160 * each["tokens"] / value["tokens"] for each in value["bins"]]
                style = {"color": PALETTE[colour][0], "zorder": 3}
                axes.plot(xs, ys, lw=1.3, **style)
                axes.scatter(xs, ys, s=sizes, marker=marker, alpha=0.75, linewidths=0, label=name, **style)
            axes.set(title=stage, xlabel="confidence", xlim=(0, 1.04), ylim=(0, 1.04))
            if number % columns == 1 or columns == 1:
                axes.set_ylabel("accuracy")
            if number == 1:
                drawing.finish_legend(axes, inside=True)

    return drawing.svg_of("calibration", draw, 9.0 if columns > 1 else 4.5, 0.4 + 3.0 * lines)


def _interval(axes, row: int, shares: list[float], colour: str, marker: str) -> None:
    found = spread(shares)
    # Seeds lie below the line of the mean, so that neither hides the other.
    style = {"marker": ".", "color": colour, "alpha": 0.6, "markersize": 5, "linestyle": "none"}
    axes.plot([100 * share for share in shares], [row + 0.24] * len(shares), **style)
    if found["low"] is not None:
        ends = [max(0.0, 100 * found["low"]), min(100.0, 100 * found["high"])]
        axes.plot(ends, [row, row], color=colour, lw=1.8, marker="|", markersize=7)
    axes.plot([100 * found["mean"]], [row], color=colour, marker=marker, markersize=6.5)


def _spans(stages: list[StageView]) -> list[tuple[StageView, int, int]]:
    """(stage, first step, last step) of stages laid end to end."""
    spans, first = [], 0
    for stage in stages:
        steps = [line["step"] for line in stage.log] + [step for step, _ in stage.validations]
        spans.append((stage, first, first + max(steps)))
        first += max(steps)
    return spans


def _line(axes, stage, first, metric, label, dashes=None, width=1.7) -> None:
    points = [(first + line["step"], line[metric]) for line in stage.log if drawing.finite(line.get(metric))]
    if not points:
        return
    size = math.ceil(len(points) / _MAX_POINTS)
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    xs = [sum(x for x, _ in part) / len(part) for part in bins]
    ys = [sum(y for _, y in part) / len(part) for part in bins]
    style = {"color": PALETTE[drawing.METRIC_COLOURS[metric]][0], "lw": width, **({"dashes": dashes} if dashes else {})}
    axes.plot(xs, ys, **style, label=label, marker="." if len(xs) == 1 else None)


def _borders(axes, spans, labels: bool = True) -> None:
    """Lines between stages, and each stage's name above its part (its number alone where that is too narrow)."""
    total = max(spans[-1][2], 1)
    axes.set_xlim(-0.01 * total, 1.01 * total)
    room = axes.get_position().width * axes.figure.get_figwidth() * 13  # characters of font size 9 across the axes
    for stage, first, last in spans:
        if first:
            axes.axvline(first, color=drawing.INK, lw=0.8, alpha=0.55, dashes=(3, 3))
        if labels:
            name = f"{stage.number} {stage.name}"
            fits = len(name) < room * (last - first) / total
            text = name if fits else str(stage.number)
            place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 9}
            axes.text((first + last) / 2, 1.015, text, **place)


def _stage_axis(axes, names: list[str]) -> None:
    crowded = sum(len(name) for name in names) > 75
    rotation = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(range(len(names)), [drawing.short(name, 24) for name in names], **rotation)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(False, axis="x")
