"""Held-out curves of a run by tokens trained on, as an SVG file for use outside of a report (`report --plot`).

Where stages start from the same weights (arms of a comparison), only they are drawn, each from the same token count.
"""

from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.report.drawing import finish_legend, finite, log_if_wide, standalone, svg_of
from mindspore_impl.report.render import PALETTE
from mindspore_impl.report.run_files import StageView, read_run

_LOOKS = list(zip(("grey", "vermillion", "blue", "green", "purple", "orange", "wine"), "soD^vPX", strict=True))
Line = tuple[str, list[tuple[float, float]]]  # stage name, points


def write_curves(run_dir: Path, path: Path) -> None:
    """Write the plot of a run directory as the SVG file `path`. Raises UserError where nothing was held out yet."""
    svg = curves_figure(read_run(run_dir).stages)
    if svg is None:
        raise UserError(f"{run_dir}: nothing held out to plot; name data.validation or evaluation.teacher_kl")
    files.write_text(path, standalone(svg))


def curves_figure(stages: list[StageView]) -> str | None:
    """Validation perplexity, and the KL divergence of the teacher after each stage, by tokens. None without data."""
    trained = [stage for stage in stages if stage.trained and stage.folder]
    starts = starts_of(trained)
    trained = arms_of(trained)
    looks = {stage.name: _LOOKS[number % len(_LOOKS)] for number, stage in enumerate(trained)}
    validated = sorted({name for stage in trained for _, sets in stage.validations for name in sets})
    panels = [(f"perplexity on {name}", validation_lines(trained, starts, name)) for name in validated]
    for name in sorted({name for stage in stages for name in stage.evaluation.get("teacher_kl", {})}):
        panels.append((f"KL of the teacher on {name} (nats a token)", kl_lines(stages, trained, starts, name)))
    panels = [(title, lines) for title, lines in panels if lines]
    if not panels:
        return None

    def draw(figure: Figure) -> None:
        for number, (title, lines) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), number)
            for name, points in lines:
                colour, marker = looks[name]
                style = {"color": PALETTE[colour][0], "marker": marker, "markersize": 5, "lw": 1.6}
                axes.plot(*zip(*((x / 1e3, y) for x, y in points), strict=True), label=name, **style)
            log_if_wide(axes)
            axes.set(title=title, xlabel="thousand tokens trained on")
            finish_legend(axes, inside=True)

    return svg_of("curves", draw, 4.6 * len(panels), 3.6)


def arms_of(trained: list[StageView]) -> list[StageView]:
    """The stages that share their initial weights with another one; all where none do."""
    begun = Counter(stage.inputs.get("init") for stage in trained)
    return [stage for stage in trained if stage.inputs.get("init") and begun[stage.inputs["init"]] > 1] or trained


def tokens_a_step(stage: StageView) -> int:
    """Packed tokens of one step of a training stage."""
    data = stage.settings.get("data") or {}
    return int(data.get("rows", 0)) * int(data.get("sequence_length", 0))


def starts_of(trained: list[StageView]) -> dict[str, int]:
    """Tokens that the initial weights of each stage had been trained on in this run."""
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    for stage in trained:
        starts[stage.name] = ends.get(stage.inputs.get("init", ""), 0)
        ends[stage.name] = starts[stage.name] + _steps(stage) * tokens_a_step(stage)
    return starts


def _steps(stage: StageView) -> int:
    """Steps of a finished stage; the last validated step of an unfinished one."""
    return int(stage.metrics.get("steps") or max((step for step, _ in stage.validations), default=0))


def validation_lines(trained: list[StageView], starts: dict[str, int], name: str) -> list[Line]:
    """Perplexity on the validation set `name` along each stage that was validated on it."""
    lines = []
    for stage in trained:
        found = [(step, sets[name].get("perplexity")) for step, sets in stage.validations if name in sets]
        first, each = starts[stage.name], tokens_a_step(stage)
        points = [(first + step * each, value) for step, value in found if finite(value)]
        if points:
            lines.append((stage.name, points))
    return lines


def kl_lines(stages: list[StageView], trained: list[StageView], starts: dict[str, int], name: str) -> list[Line]:
    """For each stage a line from the divergence of its initial weights to that of its final ones."""
    measured: dict[str, float] = {}
    for stage in stages:
        value = stage.evaluation.get("teacher_kl", {}).get(name, {}).get("kl")
        if finite(value):
            measured[stage.inputs.get("init", "")] = value
    lines = []
    for stage in (stage for stage in trained if stage.name in measured):
        end = starts[stage.name] + _steps(stage) * tokens_a_step(stage)
        places = [(starts[stage.name], stage.inputs.get("init", "")), (end, stage.name)]
        lines.append((stage.name, [(x, measured[reference]) for x, reference in places if reference in measured]))
    return lines
