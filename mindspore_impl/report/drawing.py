"""Plot style and SVG output: colours, legends, and Matplotlib SVG adapted to a page or to a file of its own.

One drawing is legible on light and dark; each colour has its own marker or dash.
"""

import io
import math
import re
from collections.abc import Callable

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator

from mindspore_impl.report.render import PALETTE

_CARD = {"card": ("#ffffff", "#1a2027"), "ink": ("#1b2128", "#e6eaef"), "rule": ("#d8dde3", "#343d48")}
METRIC_COLOURS = {
    "loss": "blue",
    "ce": "vermillion",
    "kd": "purple",
    "teacher_entropy": "orange",
    "teacher_mass": "green",
    "student_mass": "wine",
    "agreement": "grey",
    "seconds": "blue",
    "tokens": "green",
}
_MARKERS = "osD^vPX"
INK, RULE = "#010203", "#040506"  # replaced by currentColor and the page's rule colour


def set_style(name: str, names: list[str]) -> tuple[str, str]:
    """(colour name, marker) of a data set; the same in every plot of a report over the same `names`."""
    position = sorted(names).index(name)
    others = ["vermillion", "blue", "orange", "wine", "grey"]
    colour = "purple" if "reasoning" in name else "green" if "fast" in name else others[position % len(others)]
    return colour, _MARKERS[position % len(_MARKERS)]


def finite(value) -> bool:
    """Whether a value is a number that can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def log_if_wide(axes) -> None:
    """A logarithmic scale where the lines drawn so far span more than a factor of 20."""
    values = [float(y) for line in axes.get_lines() for y in line.get_ydata()]
    if values and min(values) > 0 and max(values) / min(values) > 20:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")


def short(text: str, limit: int) -> str:
    """`text`, cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def finish_legend(axes, inside: bool = False) -> None:
    """A legend of each label once: above the axes, or inside of them."""
    found = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.07), "ncols": min(len(found), 4), "borderaxespad": 0}
    if found:
        axes.legend(found.values(), found.keys(), frameon=False, fontsize=9, **({} if inside else above))


_STYLE = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.parse_math": False,
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.labelcolor": INK,
}


def svg_of(name: str, draw: Callable[[Figure], None], width: float, height: float) -> str:
    """Draw into a transparent figure of `width` x `height` inches; ids are made unique by `name`, dates left out."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), dpi=72)
        canvas = FigureCanvasSVG(figure)
        draw(figure)
        # `savefig` would draw everything once more to find the layout.
        ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08).execute(figure)
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    text = re.sub(r'(<[^<>]*\s)id="', rf'\1id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for size in ("width", "height"):  # they come from the page; the font too
        text = re.sub(rf'(<svg [^>]*?){size}="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    text = re.sub(r"(font(?:-family)?: [^;\"]*?)'?DejaVu Sans'?[^;\"]*", r"\1system-ui, sans-serif", text)
    for colour, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{colour})")
    return text.replace(INK, "currentColor").replace(RULE, "var(--rule)")


def standalone(svg: str) -> str:
    """The result of `svg_of` as an SVG file of its own, on a card that follows the reader's light or dark scheme."""
    left, top, width, height = re.search(r'viewBox="([^"]*)"', svg)[1].split()
    colours = ["".join(f"--{name}:{pair[number]};" for name, pair in {**PALETTE, **_CARD}.items()) for number in (0, 1)]
    style = (
        f"svg{{{colours[0]}color:var(--ink)}}@media (prefers-color-scheme:dark){{svg{{{colours[1]}}}}}"
        "text{fill:currentColor}"
    )
    size = f'xmlns="http://www.w3.org/2000/svg" width="{float(width) * 4 / 3:g}" height="{float(height) * 4 / 3:g}" '
    card = f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="6" style="fill:var(--card)"/>'
    begin = svg.index(">") + 1
    return svg[:begin].replace("<svg ", f"<svg {size}", 1) + f"<style>{style}</style>{card}" + svg[begin:] + "\n"
