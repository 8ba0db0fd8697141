"""The curriculum as a diagram: a box for each stage in its order, and a wire from each stage to those that read it.

Boxes are HTML beside one SVG of wires, so that text wraps and keeps its size on a phone. An evaluation that the runner
put behind a stage stands in the box of that stage.
"""

from mindspore_impl.report.figures import count, duration
from mindspore_impl.report.page import esc
from mindspore_impl.report.run_files import RunView, StageView
from mindspore_impl.report.tables import percent

STATUS = {
    "finished": ("good", "✓ finished"),
    "unfinished": ("wait", "… unfinished"),
    "not started": ("wait", "○ not started"),
}
_KINDS = ("sft", "distill", "rollout", "capture", "evaluate", "score", "reject", "export")
_ROW, _LANE = 100, 15  # height of a box and distance of wires in the units of the SVG


def curriculum(run: RunView) -> str:
    """The diagram as HTML."""
    boxes = [stage for stage in run.stages if stage.measured == stage.name]
    evaluations = {stage.measured: stage for stage in run.stages if stage.measured != stage.name}
    longest = max((stage.seconds or 0 for stage in boxes), default=0) or 1
    wires, width = _wires(boxes)
    items = "".join(_box(stage, evaluations.get(stage.name), longest, run) for stage in boxes)
    told = "; ".join(
        f"{stage.name} reads {' and '.join(f'{name} as {role}' for role, name in stage.inputs.items())}"
        for stage in boxes
        if stage.inputs
    )
    return (
        f'<div class="diagram" style="--rows:{len(boxes)};--gutter:{width / 16:g}rem">'
        f'<svg class="wires" viewBox="0 0 {width} {_ROW * len(boxes)}" preserveAspectRatio="none" '
        f'fill="currentColor" role="img" '
        f'aria-label="{esc("Wires of the curriculum: " + (told or "no stage reads another"))}">{wires}</svg>'
        f'<ol class="flow">{items}</ol></div>'
        '<p class="caption">Wires lead from a stage to those that read it, dot to arrow; the bar shows the time of a '
        "stage beside that of the longest.</p>"
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


def _wires(boxes: list[StageView]) -> tuple[str, int]:
    """The wires as SVG, and the width they take."""
    row = {stage.name: number for number, stage in enumerate(boxes)}
    readers: dict[str, list[tuple[int, float]]] = {}  # source: (row, height of the arrow) of each reader
    for number, stage in enumerate(boxes):
        sources = list(dict.fromkeys(name for name in stage.inputs.values() if row.get(name, number) < number))
        for place, name in enumerate(sources, start=1):
            readers.setdefault(name, []).append((number, _ROW * (number + 0.6 * place / (len(sources) + 1))))
    names = list(readers)
    spans = [(row[name], max(reader for reader, _ in readers[name])) for name in names]
    chosen = lanes(spans)
    width = _LANE * (max(chosen, default=0) + 1) + 14
    drawn = []
    for name, lane in zip(names, chosen, strict=True):
        x, start = width - 14 - _LANE * lane, _ROW * (row[name] + 0.8)
        ends = [y for _, y in readers[name]]
        path = f"M{width} {start:g}H{x}V{max(ends):g}" + "".join(f"M{x} {y:g}H{width - 7}" for y in ends)
        heads = "".join(f'<path class="head" d="M{width} {y:g}l-9 -5v10z"/>' for y in ends)
        dot = f'<circle cx="{width - 4}" cy="{start:g}" r="4"/>'
        title = f"<title>{esc(name)}</title>"
        drawn.append(f'<g class="{_kind(boxes[row[name]])}">{title}<path class="wire" d="{path}"/>{dot}{heads}</g>')
    return "".join(drawn), width


def _kind(stage: StageView) -> str:
    return stage.kind if stage.kind in _KINDS else "other"


def _box(stage: StageView, evaluation: StageView | None, longest: float, run: RunView) -> str:
    badge, words = STATUS[stage.status]
    sign, _, word = words.partition(" ")
    known = {each.name for each in run.stages}
    sources = ", ".join(
        f"{esc(role)} ← " + (f"<b>{esc(name)}</b>" if name in known else esc(name))
        for role, name in stage.inputs.items()
    )
    cost = ""
    if stage.seconds is not None:
        tokens = f" · {count(stage.tokens)} tokens" if stage.tokens else ""
        cached = " · from the cache" if stage.cached else ""
        share = 100 * stage.seconds / longest
        cost = f'<i class="bar" style="width:{share:.1f}%"></i>{esc(duration(stage.seconds) + tokens + cached)}'
    shown = stage.accuracy or (evaluation.accuracy if evaluation else {})
    right = " · ".join(
        f"{esc(name)} <b>{percent(value['accuracy'])}&nbsp;%</b>" for name, value in sorted(shown.items())
    )
    return (
        f'<li class="{_kind(stage)}"><div class="top"><span class="step">{stage.number}</span> '
        f'<b>{esc(stage.name)}</b> <span class="kind">{esc(stage.kind)}</span>'
        f'<span class="badge {badge}">{sign}<span class="word"> {word}</span></span></div>'
        f'<div class="from">{sources or "starts from data alone"}</div>'
        f'<div class="spent">{cost}</div>' + (f"<div>{right}</div>" if right else "") + "</li>"
    )
