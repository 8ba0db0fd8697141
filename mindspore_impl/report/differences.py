"""How the runs of a sweep differ: in their configurations, and in what they ran on."""

import json

from mindspore_impl.report.page import table
from mindspore_impl.report.run_files import RunView

_NOT_COMPARED = ("run_dir", "runtime", "seed", "seeds", "sweep", "name")
_MOST_ROWS = 200


def config_rows(name: str, run: RunView, reference_name: str, reference: RunView) -> list[list[str]]:
    """[name, reference, key, the value of `run`, that of the reference] of each key that differs between two runs."""
    one, other = _flat(run.config), _flat(reference.config)
    keys = [key for key in dict.fromkeys([*other, *one]) if one.get(key) != other.get(key)]
    return [[name, reference_name, key, one.get(key, "–"), other.get(key, "–")] for key in keys]


def config_section(rows: list[list[str]]) -> str:
    """The rows of `config_rows` as a table; empty when there are none."""
    left = f" {len(rows) - _MOST_ROWS} more are left out." if len(rows) > _MOST_ROWS else ""
    head = ["configuration", "against", "key", "value", "value there"]
    caption = f"Keys of config.yaml whose values differ, seed and folder apart.{left}"
    return table(head, rows[:_MOST_ROWS], caption, text_columns=5) if rows else ""


def environment_section(runs: list[RunView]) -> str:
    """Hardware, versions and commits of all runs: one line where they agree, else one for each value."""
    if not runs:
        return ""
    found: dict[str, dict[str, int]] = {}
    for run in runs:
        values = {"device": run.environment["device"], "commit": run.environment["commit"] or "not recorded"}
        for key, value in (values | run.environment["versions"]).items():
            counts = found.setdefault(key, {})
            counts[str(value)] = counts.get(str(value), 0) + 1
    rows = [
        [key, value, f"{number} of {len(runs)}"] for key, counts in found.items() for value, number in counts.items()
    ]
    return table(["what", "value", "trials"], rows, "Where the numbers above were measured.", text_columns=2)


def _flat(value, key: str = "") -> dict[str, str]:
    """{"a.b": JSON of the value} of nested mappings."""
    if isinstance(value, dict) and value:
        parts = [_flat(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()
                 if key or name not in _NOT_COMPARED]  # fmt: skip
        return {name: text for part in parts for name, text in part.items()}
    return {key: json.dumps(value, ensure_ascii=False, default=str)}
