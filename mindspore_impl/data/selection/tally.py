"""What each step saw, kept and dropped, and why."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, Any

from mindspore_impl.data.selection.stream import Drop, Item
from mindspore_impl.text.records import record_to_json

MOST_REASONS = 50  # a step that puts values into its reasons must not make the report grow with the file


@dataclass
class Tally:
    """The account of one step; `file` receives the dropped records where the recipe asks for them."""

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
        """How many records this step dropped."""
        return sum(self.reasons.values())

    def drop(self, item: Item, drop: Drop) -> None:
        """Count a record that goes, and remember or write it."""
        self._note(drop, {"id": item.record.id, "set": item.set, "place": item.place}, item)

    def refuse(self, place: str, drop: Drop) -> None:
        """Count a line that became no record."""
        self._note(drop, {"place": place})

    def _note(self, drop: Drop, example: dict, item: Item | None = None) -> None:
        reason = drop.reason
        if reason not in self.reasons and len(self.reasons) >= MOST_REASONS:
            reason = "other reasons"
        self.reasons[reason] += 1
        for key in ("detail", "other"):
            if getattr(drop, key):
                example[key] = getattr(drop, key)
        if len(shown := self.examples.setdefault(reason, [])) < self.shown:
            shown.append(example)
        if self.file is not None:
            line = {"step": self.where, "reason": drop.reason} | example
            if item is not None:
                line["record"] = record_to_json(item.record)
            self.file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def to_json(self) -> dict:
        """For report.json."""
        return {
            "step": self.name, "where": self.where, "saw": self.saw, "kept": self.kept, "dropped": self.dropped,
            "reasons": dict(self.reasons.most_common()), "examples": self.examples, "notes": self.notes,
        }  # fmt: skip
