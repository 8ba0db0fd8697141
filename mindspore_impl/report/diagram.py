"""The curriculum as a diagram: HTML boxes in the order of the stages, and an SVG of wires to their readers."""

from markupsafe import Markup

from mindspore_impl.report.render import render
from mindspore_impl.report.run_files import RunView, StageView

_ROW, _LANE = 100, 15  # height of a box and distance of wires in the units of the SVG


def curriculum(run: RunView) -> Markup:
    """The diagram as HTML."""
    stages = [stage for stage in run.stages if stage.subject == stage.name]
    accuracies = {stage.subject: stage.accuracy for stage in run.stages if stage.accuracy}
    wires, width = _wires(stages)
    sentences = [
        f"{stage.name} reads {' and '.join(f'{name} as {role}' for role, name in stage.inputs.items())}"
        for stage in stages
        if stage.inputs
    ]
    return render(
        "diagram.html",
        boxes=[(stage, accuracies.get(stage.name, {})) for stage in stages],
        names={stage.name for stage in run.stages},
        longest=max((stage.seconds or 0 for stage in stages), default=0) or 1,
        wires=wires,
        width=width,
        row_height=_ROW,
        description="Wires of the curriculum: " + ("; ".join(sentences) or "no stage reads another"),
    )


def lanes(spans: list[tuple[int, int]]) -> list[int]:
    """A lane for each span (first row, last row) such that no two spans of a lane overlap; short spans come first."""
    taken: list[list[tuple[int, int]]] = []
    chosen = [0] * len(spans)
    for number in sorted(range(len(spans)), key=lambda n: (spans[n][1] - spans[n][0], spans[n])):
        first, last = spans[number]
        free = (lane for lane, held in enumerate(taken) if all(last <= a or first >= b for a, b in held))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((first, last))
        chosen[number] = lane
    return chosen


def _wires(stages: list[StageView]) -> tuple[list[dict], int]:
    """The wires, {"name", "group", "path", "start", "ends"} in units of the SVG, and the width they take."""
    row = {stage.name: number for number, stage in enumerate(stages)}
    readers: dict[str, list[tuple[int, float]]] = {}  # source: (row, height of the arrow) of each reader
    for number, stage in enumerate(stages):
        sources = list(dict.fromkeys(name for name in stage.inputs.values() if row.get(name, number) < number))
        for place, name in enumerate(sources, start=1):
            readers.setdefault(name, []).append((number, _ROW * (number + 0.6 * place / (len(sources) + 1))))
    chosen = lanes([(row[name], max(reader for reader, _ in found)) for name, found in readers.items()])
    width = _LANE * (max(chosen, default=0) + 1) + 14
    wires = []
    for (name, found), lane in zip(readers.items(), chosen, strict=True):
        x, start, ends = width - 14 - _LANE * lane, _ROW * (row[name] + 0.8), [y for _, y in found]
        path = f"M{width} {start:g}H{x}V{max(ends):g}" + "".join(f"M{x} {y:g}H{width - 7}" for y in ends)
        group = stages[row[name]].group
        wires.append(
            {"name": name, "group": group, "path": path, "start": f"{start:g}", "ends": [f"{y:g}" for y in ends]}
        )
    return wires, width
