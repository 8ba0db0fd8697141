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
    names = [f"{json.dumps(key, ensure_ascii=False)}: " for key in value] if keyed else [""] * len(value)
    entries = value.values() if keyed else value
    texts = [_text(entry, depth - 1, indent + " ") for entry in entries]
    lines = [f"{indent} {name}{text}" for name, text in zip(names, texts, strict=True)]
    opening, closing = "{}" if keyed else "[]"
    return f"{opening}\n" + ",\n".join(lines) + f"\n{indent}{closing}"
