"""The browser of evaluated answers: the first ones of each stage as plain HTML, many more for the page's script.

Without a script a page shows `samples_in_report` answers of each set; with it (`script.py`) all that were embedded, by
stage, set, verdict and words.
"""

from mindspore_impl.report.page import data_script, esc
from mindspore_impl.report.run_files import RunView, StageView

MOST_BYTES = 1_200_000  # of embedded answers, the newest stages first
FIELDS = ("id", "set", "thinking", "prompt", "reasoning", "answer", "expected", "correct", "finished")


def section(run: RunView) -> str:
    """The browser; empty where no answer was recorded."""
    stages = [stage for stage in run.stages if stage.samples]
    if not stages:
        return ""
    parts = []
    for stage in reversed(stages):
        shown = [sample for sample in stage.samples if sample.get("shown", True)]
        newest = stage is stages[-1]
        parts.append(
            f"<details{' open' if newest else ''}><summary>After {esc(stage.measured)}: the first {len(shown)} of "
            f"{len(stage.samples)} answers, unselected</summary>{''.join(_sample(s) for s in shown)}</details>"
        )
    embedded, left = _embedded(stages)
    note = f"{left} more are in the stages' samples.jsonl." if left else ""
    return (
        f'<div id="browser" hidden data-note="{esc(note)}"></div>'
        + data_script("browser-data", embedded)
        + f'<div id="browser-static">{"".join(parts)}</div>'
    )


def _embedded(stages: list[StageView]) -> tuple[list[dict], int]:
    """[{"stage", "samples": [values of FIELDS]}], the newest stage first, and how many samples found no room."""
    room, left, found = MOST_BYTES, 0, []
    for stage in reversed(stages):
        taken = []
        for sample in stage.samples:
            values = [sample.get(key, "") if isinstance(sample.get(key), bool) else str(sample.get(key) or "")
                      for key in FIELDS]  # fmt: skip
            size = 20 + sum(len(value.encode()) + 4 for value in values if isinstance(value, str))
            if size > room:
                left += 1
                continue
            room -= size
            taken.append(values)
        if taken:
            found.append({"stage": stage.measured, "samples": taken})
    return found, left


def _sample(sample: dict) -> str:
    right = bool(sample.get("correct"))
    badge = '<span class="badge good">✓ right</span>' if right else '<span class="badge bad">✗ wrong</span>'
    if not sample.get("finished", True):
        badge += ' <span class="badge wait">✂ cut before its end</span>'

    def field(key: str) -> str:
        text = str(sample.get(key) or "")
        return f"<dt>{key}</dt><dd>{esc(text)}</dd>" if text else f'<dt>{key}</dt><dd class="none">none</dd>'

    what = f"{esc(sample.get('set', ''))}, {esc(sample.get('thinking', ''))} mode, record {esc(sample.get('id', ''))}"
    fields = ["prompt", "reasoning", "answer", "expected"]
    if sample.get("thinking") == "fast" and not sample.get("reasoning"):
        fields.remove("reasoning")
    body = "".join(map(field, fields))
    return f'<article class="sample"><header>{badge}<span>{what}</span></header><dl>{body}</dl></article>'
