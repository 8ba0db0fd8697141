"""The account of a selection: what each step saw, kept and dropped, and the page report.md."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, Any

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

    def drop(self, item: Item, drop: Drop) -> None:
        """Count a dropped record, and keep it as an example or write it to the file."""
        self._note(drop, {"id": item.record.id, "set": item.set, "place": item.place}, item)

    def refuse(self, place: str, drop: Drop) -> None:
        """Count a line that is not a record."""
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
        """The entry of this step in report.json."""
        return {
            "step": self.name, "where": self.where, "saw": self.saw, "kept": self.kept, "dropped": self.dropped,
            "reasons": dict(self.reasons.most_common()), "examples": self.examples, "notes": self.notes,
        }  # fmt: skip


def markdown(report: dict) -> str:
    """The page report.md of a report.json: input, what each step dropped and why, and the cost."""
    lines = [
        f"# Selection by {report['recipe_name']}",
        "",
        f"{report['read']:,} records read, {report['kept']:,} kept ({_share(report['kept'], report['read'])}) in "
        f"{report['seconds']:.1f} s ({report['records_per_second']:,.0f} records/s; {report['processor_seconds']:.1f} "
        f"s of one processor); peak memory of the process: {report['peak_mb'] or 'unknown'} MB.",
        "",
        "| step | saw | kept | dropped | share |",
        "|---|---:|---:|---:|---:|",
    ]
    for step in report["steps"]:
        lines.append(
            f"| {step['where']} | {step['saw']:,} | {step['kept']:,} | {step['dropped']:,} | "
            f"{_share(step['dropped'], step['saw'])} |"
        )
    for step in report["steps"]:
        if step["reasons"] or step["notes"]:
            lines += ["", f"## {step['where']}", "", *_step(step)]
    lines += ["", "## Files", "", "| file | sha256 |", "|---|---|"]
    lines += [f"| {_cell(name)} | {sha256} |" for name, sha256 in report["files"].items()]
    lines += [f"| selected.jsonl | {report['output_sha256']} |", f"| the recipe | {report['recipe_sha256']} |", ""]
    return "\n".join(lines)


def _step(step: dict) -> list[str]:
    lines = [f"{key.replace('_', ' ')}: {_cell(str(value))}  " for key, value in step["notes"].items()]
    for reason, count in step["reasons"].items():
        lines.append(f"- {_cell(reason)}: {count:,}")
        for example in step["examples"].get(reason, []):
            other = f" because of `{example['other']}`" if example.get("other") else ""
            name = f"`{example.get('id', example['place'])}`"
            lines.append(f"  - {_cell(name + other + ' ' + example.get('detail', ''))}")
    return lines


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole if whole else None
    return "-" if percent is None else f"{percent:.1f} %" if percent >= 1 or not part else f"{percent:.2g} %"


def _cell(text: str) -> str:
    """`text` as the cell of a table: one line, escaped, at most 200 characters."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 200 else text[:200] + "…"
