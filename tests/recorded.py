"""Recorded facts as JSON, one short entry a line, so that a change shows as few lines."""

import json
from pathlib import Path


def write(path: Path, value, depth: int) -> None:
    """Write `value`; mappings and lists below `depth` levels stand on one line each."""
    path.write_text(_text(value, depth, "") + "\n", encoding="utf-8")


def _text(value, depth: int, indent: str) -> str:
    if not depth or not isinstance(value, dict | list) or not value:
        return json.dumps(value, ensure_ascii=False)
    keyed = isinstance(value, dict)
    pairs = value.items() if keyed else ((None, each) for each in value)
    lines = [
        f"{indent} "
        + (f"{json.dumps(key, ensure_ascii=False)}: " if keyed else "")
        + _text(each, depth - 1, indent + " ")
        for key, each in pairs
    ]
    opening, closing = "{}" if keyed else "[]"
    return f"{opening}\n" + ",\n".join(lines) + f"\n{indent}{closing}"
