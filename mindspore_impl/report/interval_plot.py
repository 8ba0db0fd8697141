"""Configurations side by side: every seed as a point, their mean and its 95 % interval, a panel for each measure."""

from collections.abc import Sequence

from mindspore_impl.report.drawing import PALETTE, set_style, short, svg_of
from mindspore_impl.report.statistics import spread

Rows = Sequence[tuple[str, dict[str, list[float]]]]  # (name, {measure: shares in [0, 1], one a seed})


def interval_plot(rows: Rows, measures: list[str]) -> str | None:
    """The drawing; None without values. Rows come from top to bottom, panels from left to right."""
    measures = [measure for measure in measures if any(values.get(measure) for _, values in rows)]
    if not measures:
        return None

    def draw(figure) -> None:
        first = None
        for number, measure in enumerate(measures, start=1):
            axes = first = figure.add_subplot(1, len(measures), number, sharey=first)
            colour, marker = set_style(measure, measures)
            for row, (_, values) in enumerate(rows):
                if values.get(measure):
                    _row(axes, row, values[measure], PALETTE[colour][0], marker)
            axes.set_title(short(measure.removeprefix("final."), 70 // len(measures)), fontsize=10, loc="left")
            axes.set_xlabel("accuracy (%)")
            if number > 1:
                axes.tick_params(labelleft=False)
            else:
                axes.set_yticks(range(len(rows)), [short(title, 44) for title, _ in rows])
                axes.set_ylim(len(rows) - 0.5, -0.5)

    return svg_of("intervals", draw, 9.0, 1.1 + 0.32 * len(rows))


def _row(axes, row: int, shares: list[float], colour: str, marker: str) -> None:
    found = spread(shares)
    # Seeds lie below the line of the mean, so that neither hides the other.
    axes.plot([100 * share for share in shares], [row + 0.24] * len(shares), marker=".", color=colour, alpha=0.6,
              markersize=5, linestyle="none")  # fmt: skip
    if found["low"] is not None:
        ends = [max(0.0, 100 * found["low"]), min(100.0, 100 * found["high"])]
        axes.plot(ends, [row, row], color=colour, lw=1.8, marker="|", markersize=7)
    axes.plot([100 * found["mean"]], [row], color=colour, marker=marker, markersize=6.5)
