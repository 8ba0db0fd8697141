"""Tables that several reports show: shares in percent, differences with their intervals, and Markdown."""

from mindspore_impl.report.page import table

DIFFERENCE_HEAD = ["difference", "set", "mean", "95 % interval", "p", "n"]


PAIRED = (
    "paired over the seeds, with 95 % t intervals and two-sided p-values of the paired t test, which are not corrected "
    "for the number of comparisons."
)


def p_value(p: float | None) -> str:
    """A p-value in few digits; a dash for None."""
    return "–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


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
        title = f"{row['stage']} − {row['reference']}"
        rows.append([title, row["set"], points(row["mean"]), interval, p_value(row["p"]), str(row["n"])])
    return rows


def difference_table(differences: list[dict]) -> str:
    """The differences as HTML; empty when there are none."""
    caption = f"In percentage points, {PAIRED}"
    return table(DIFFERENCE_HEAD, difference_rows(differences), caption, text_columns=2) if differences else ""


def markdown_table(head: list[str], rows: list[list[str]], text_columns: int = 2) -> str:
    """A Markdown table; all but the first columns are numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    lines = [head, rule, *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
