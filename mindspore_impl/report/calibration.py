"""The part of a run's report that shows whether stages are right as often as they are sure."""

from mindspore_impl.report.drawing import PALETTE, finish_legend, once, set_style, svg_of
from mindspore_impl.report.page import figure, table
from mindspore_impl.report.run_files import RunView, StageView, evaluation_of

_PANELS = 6  # newest stages; all are in the table


def section(run: RunView) -> str:
    """A reliability diagram for each evaluated stage and a table of all; empty where nothing was measured."""
    measured = [(stage, found) for stage in run.stages if (found := _found(stage))]
    if not measured:
        return ""
    rows = [
        [stage.measured, name, f"{100 * value['ece']:.2f}", *_means(value), f"{value['tokens']:,}"]
        for stage, found in measured
        for name, value in found.items()
    ]
    told = "; ".join(f"{row[0]} {row[1]} ECE {row[2]} %" for row in rows)
    shown = measured[-_PANELS:]
    return figure(
        _drawn(shown),
        f"Calibration by stage: {told}",
        "Teacher-forced on held-out text: the accuracy of the most probable token against its probability, in bins of "
        "equal width; the area of a mark is the share of tokens in its bin. Below the diagonal a model is too sure.",
    ) + table(
        ["after", "set", "ECE %", "mean confidence %", "top-1 accuracy %", "tokens"],
        rows,
        "Expected calibration error: the distance of confidence and accuracy, averaged over the bins by their tokens.",
        text_columns=2,
    )


def _found(stage: StageView) -> dict[str, dict]:
    """{set: what `teacher_forced.calibration` gives} of the sets that have an ECE."""
    found = evaluation_of(stage.metrics).get("calibration") or {}
    return {name: value for name, value in sorted(found.items()) if value.get("ece") is not None}


def _means(value: dict) -> list[str]:
    sums = [sum(each["tokens"] * each[key] for each in value["bins"]) for key in ("confidence", "accuracy")]
    return [f"{100 * each / value['tokens']:.1f}" for each in sums]


def _drawn(measured: list[tuple[StageView, dict]]) -> str:
    names = sorted({name for _, found in measured for name in found})
    columns = min(3, len(measured))
    lines = -(-len(measured) // columns)

    def draw(drawing) -> None:
        for number, (stage, found) in enumerate(measured, start=1):
            axes = drawing.add_subplot(lines, columns, number)
            axes.plot([0, 1], [0, 1], color=PALETTE["grey"][0], lw=1, dashes=(3, 3))
            seen: set[str] = set()
            for name, value in found.items():
                colour, marker = set_style(name, names)
                xs, ys = ([each[key] for each in value["bins"]] for key in ("confidence", "accuracy"))
                sizes = [12 + 160 * each["tokens"] / value["tokens"] for each in value["bins"]]
                style = {"color": PALETTE[colour][0], "zorder": 3}
                axes.plot(xs, ys, lw=1.3, **style)
                axes.scatter(xs, ys, s=sizes, marker=marker, alpha=0.75, linewidths=0, **style, **once(name, seen))
            axes.set_xlim(0, 1.04)
            axes.set_ylim(0, 1.04)
            axes.set_title(stage.measured, fontsize=10, loc="left")
            axes.set_xlabel("confidence")
            if number % columns == 1 or columns == 1:
                axes.set_ylabel("accuracy")
            if number == 1:
                finish_legend(axes, inside=True)

    return svg_of("calibration", draw, 9.0 if columns > 1 else 4.5, 0.4 + 3.0 * lines)
