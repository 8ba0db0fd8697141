"""Render report pages with Jinja2: escaped templates, number formats and Markdown tables.

A page is one HTML file; its content security policy forbids network access and any script but templates/page.js.
"""

import base64
import functools
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

# Colour name: (on light, on dark). After Okabe and Ito, adjusted until each has contrast 3:1 on its background.
PALETTE = {
    "blue": ("#0072b2", "#56b4e9"),
    "vermillion": ("#d55e00", "#ff8a4c"),
    "green": ("#00855f", "#2fc89a"),
    "purple": ("#a9518b", "#e79ac6"),
    "orange": ("#a86e00", "#f0b429"),
    "wine": ("#882255", "#f2708f"),
    "grey": ("#5c6670", "#b4bfca"),
}
GROUP_COLOURS = {
    "training": "blue",
    "generation": "orange",
    "scoring": "green",
    "selection": "wine",
    "evaluation": "vermillion",
    "deployment": "purple",
    "other": "grey",
}


def page(title: str, subtitle: Markup, sections: list[tuple[str, str, Markup]]) -> str:
    """A whole page. Sections are (id, heading, body); those with an empty body are left out."""
    sections = [section for section in sections if section[2]]
    script = script_hash = ""
    if any("<script" in body for _, _, body in sections):
        script = _environment().loader.get_source(_environment(), "page.js")[0]
        script_hash = f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
    values = {"title": title, "subtitle": subtitle, "sections": sections}
    return render("page.html", **values, script=Markup(script), script_hash=script_hash)


def render(template: str, **values) -> Markup:
    """A template of templates/ with `values`. Raises jinja2.UndefinedError when it uses a value that is not given."""
    text = _environment().get_template(template).render(palette=PALETTE, groups=GROUP_COLOURS, **values)
    return Markup(text.strip())


def figure(svg: str | None, description: str, caption: str) -> Markup:
    """A plot from `figures` with a description for screen readers; empty without a plot."""
    return _parts().figure(Markup(svg), description, caption) if svg else Markup()


def table(head: list[str], rows: list[list[str]], caption: str, text_columns: int = 1) -> Markup:
    """A table that scrolls by itself on a narrow screen; all but the first columns are numbers. Empty without rows."""
    return _parts().table(head, rows, caption, text_columns) if rows else Markup()


def tiles(items: list[tuple[str, str, str]]) -> Markup:
    """Key figures: (label, value, note)."""
    return _parts().tiles(items)


def paragraphs(*texts: str) -> Markup:
    """One paragraph a text."""
    return Markup().join(Markup("<p>{}</p>").format(text) for text in texts)


def markdown_table(head: list[str], rows: list[list[str]], text_columns: int = 2) -> str:
    """A Markdown table; all but the first columns are numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    lines = [head, rule, *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


DIFFERENCE_HEAD = ["difference", "set", "mean", "95 % interval", "p", "n"]
PAIRED = (
    "paired over the seeds, with 95 % t intervals and two-sided p-values of the paired t test, which are not corrected "
    "for the number of comparisons."
)


def difference_rows(differences: list[dict]) -> list[list[str]]:
    """Rows under DIFFERENCE_HEAD, of {"stage", "reference", "set"} and what `paired_difference` returns."""
    rows = []
    for row in differences:
        interval = "–" if row["low"] is None else f"{points(row['low'])} to {points(row['high'])}"
        title = f"{row['stage']} − {row['reference']}"
        rows.append([title, row["set"], points(row["mean"]), interval, p_value(row["p"]), str(row["n"])])
    return rows


def difference_table(differences: list[dict]) -> Markup:
    """The differences as HTML; empty when there are none."""
    caption = f"In percentage points, {PAIRED}"
    return table(DIFFERENCE_HEAD, difference_rows(differences), caption, text_columns=2)


def difference_markdown(differences: list[dict]) -> list[str]:
    """The differences as lines of Markdown; empty when there are none."""
    title = f"\nDifferences in percentage points, {PAIRED}\n"
    return [title, markdown_table(DIFFERENCE_HEAD, difference_rows(differences))] if differences else []


def p_value(p: float | None) -> str:
    """A p-value in few digits; a dash for None."""
    return "–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def percent(share: float | None) -> str:
    """A share in [0, 1] as percent, without the sign; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f}"


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * share:+.1f}"


def duration(seconds: float) -> str:
    """Seconds in words: 0.4 s, 12 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"


def count(value: float) -> str:
    """A count in few digits: 950, 12.3k, 4.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


@functools.cache
def _environment() -> Environment:
    whole = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=PackageLoader("mindspore_impl.report"), autoescape=True, **whole)
    environment.filters |= {"percent": percent, "duration": duration, "count": count}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    return environment


def _parts():
    return _environment().get_template("parts.html").module
