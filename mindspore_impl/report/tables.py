"""Tables that several reports show: shares in percent, differences with their intervals, and Markdown."""

from mindspore_impl.report.page import table

DIFFERENCE_HEAD = ["difference", "set", "mean", "95 % interval", "n"]


def percent(share: float | None) -> str:
    """A share in [0, 1] as percent, without the sign; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f}"


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * share:+.1f}"


def difference_rows(differences: list[dict]) -> list[list[str]]:
    """Rows under DIFFERENCE_HEAD, of {"stage", "reference", "set"} and what `paired_difference` returns."""
    rows = []
    for row in differences:
        interval = "–" if row["low"] is None else f"{points(row['low'])} to {points(row['high'])}"
        rows.append([f"{row['stage']} − {row['reference']}", row["set"], points(row["mean"]), interval, str(row["n"])])
    return rows


def difference_table(differences: list[dict]) -> str:
    """The differences as HTML; empty when there are none."""
    caption = "In percentage points, paired over the seeds. An interval without 0 is a difference at the 5 % level."
    return table(DIFFERENCE_HEAD, difference_rows(differences), caption, text_columns=2) if differences else ""


def markdown_table(head: list[str], rows: list[list[str]], text_columns: int = 2) -> str:
    """A Markdown table; all but the first columns are numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    lines = [head, rule, *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
