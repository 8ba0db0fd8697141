"""The account of a selection: what each step saw, kept and dropped, and the page report.md."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import jinja2

from mindspore_impl.data.selection.stream import Drop, Item
from mindspore_impl.text.records import record_to_json

MOST_REASONS = 50  # bounds the report of a step that puts values into its reasons


@dataclass
class Tally:
    """The counts of one step; the dropped records go to `file` where the recipe asks for them."""

    name: str
    where: str
    shown: int  # examples for each reason
    file: IO[str] | None = None
    saw: int = 0
    kept: int = 0
    reasons: Counter = field(default_factory=Counter)
    examples: dict[str, list[dict]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def dropped(self) -> int:
        """Number of records that this step dropped."""
        return sum(self.reasons.values())

    def drop(self, item: Item | str, drop: Drop) -> None:
        """Count a dropped record, or a line that is none by its place; show it as an example, write it to the file."""
        reason = drop.reason
        if reason not in self.reasons and len(self.reasons) >= MOST_REASONS:
            reason = "other reasons"
        self.reasons[reason] += 1
        record = isinstance(item, Item)
        example = {"id": item.record.id, "set": item.set, "place": item.place} if record else {"place": item}
        example |= {key: value for key, value in drop._asdict().items() if key != "reason" and value}
        if len(shown := self.examples.setdefault(reason, [])) < self.shown:
            shown.append(example)
        if self.file is not None:
            line = {"step": self.where, "reason": drop.reason} | example
            line |= {"record": record_to_json(item.record)} if record else {}
            self.file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def to_json(self) -> dict:
        """The entry of this step in report.json."""
        own = {key: getattr(self, key) for key in ("where", "saw", "kept", "dropped", "examples", "notes")}
        return {"step": self.name, **own, "reasons": dict(self.reasons.most_common())}


def markdown(report: dict) -> str:
    """The page report.md of a report.json: input, what each step dropped and why, and the cost."""
    source = Path(__file__).with_name("report.md.jinja").read_text(encoding="utf-8")
    # Nothing to escape as HTML: `_cell` escapes for Markdown.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # noqa: S701
    return environment.from_string(source).render(report, share=_share, cell=_cell)


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole if whole else None
    return "-" if percent is None else f"{percent:.1f} %" if percent >= 1 or not part else f"{percent:.2g} %"


def _cell(value: Any) -> str:
    """`value` as the cell of a table: one line, escaped, at most 200 characters."""
    text = " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 200 else text[:200] + "…"
