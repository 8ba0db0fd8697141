"""The shell of a report page: one HTML file with its own style, and the few building blocks it is made of.

Everything that comes from data passes through `esc` or `data_script` here or in the caller. A page runs no script but
its own (`script.py`) and loads nothing: its content security policy says so.
"""

import base64
import hashlib
import json
from html import escape
from string import Template

from mindspore_impl.report.drawing import PALETTE
from mindspore_impl.report.script import SCRIPT


def esc(value) -> str:
    """Any value as text that is safe inside elements and quoted attributes."""
    return escape(str(value), quote=True)


def data_script(key: str, value) -> str:
    """A JSON value for the page's script, as an element that no text inside can end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", r"\u003c").replace("&", r"\u0026")
    return f'<script type="application/json" id="{key}">{text}</script>'


def page(title: str, subtitle: str, sections: list[tuple[str, str, str]]) -> str:
    """A whole page. `subtitle` and the bodies are HTML; sections are (id, heading, body), empty bodies left out."""
    sections = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{key}">{esc(heading)}</a></li>' for key, heading, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{esc(heading)}</h2>{content}</section>'
        for key, heading, content in sections
    )
    colours = {
        "light": "".join(f"--{name}:{light};" for name, (light, _) in PALETTE.items()),
        "dark": "".join(f"--{name}:{dark};" for name, (_, dark) in PALETTE.items()),
    }
    style = Template(_STYLE).substitute(colours)
    script = policy = ""
    if "<script" in body:
        script = f"<script>{SCRIPT}</script>"
        policy = f" script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}';"
    parts = {"title": esc(title), "subtitle": subtitle, "links": links, "body": body, "style": style}
    return Template(_PAGE).substitute(parts, script=script, policy=policy)


def figure(svg: str | None, alt: str, caption: str) -> str:
    """A plot with its description for people who do not see it. `svg` is trusted; the texts are escaped."""
    if not svg:
        return ""
    return (
        f'<figure><div class="plot" role="img" aria-label="{esc(alt)}" tabindex="0">{svg}</div>'
        f"<figcaption>{esc(caption)}</figcaption></figure>"
    )


def table(head: list[str], rows: list[list[str]], caption: str, text_columns: int = 1) -> str:
    """A table that scrolls by itself on a narrow screen. Cells are escaped; all but the first columns are numbers."""

    def cells(values: list[str], tag: str) -> str:
        out = []
        for number, value in enumerate(values):
            scope = ' scope="col"' if tag == "th" else ""
            kind = "" if number < text_columns else ' class="number"'
            if tag == "td" and number == 0:
                out.append(f'<th scope="row">{esc(value)}</th>')
            else:
                out.append(f"<{tag}{scope}{kind}>{esc(value)}</{tag}>")
        return "<tr>" + "".join(out) + "</tr>"

    body = "".join(cells(row, "td") for row in rows)
    kind = ' class="wrap"' if text_columns >= len(head) else ""
    # The caption stands outside of the scrolling part, so that a phone shows all of it.
    return (
        f'<p class="caption">{esc(caption)}</p>'
        f'<div class="scroll" tabindex="0"><table{kind} aria-label="{esc(caption)}">'
        f"<thead>{cells(head, 'th')}</thead><tbody>{body}</tbody></table></div>"
    )


def tiles(items: list[tuple[str, str, str]]) -> str:
    """Key figures: (label, value, note)."""
    form = "<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>"
    cells = "".join(form.format(*map(esc, item)) for item in items)
    return f'<dl class="tiles">{cells}</dl>'


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline';$policy">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header><h1>$title</h1>$subtitle<nav aria-label="Sections"><ul>$links</ul></nav></header>
<main>$body</main>
$script
</body>
</html>
"""

_STYLE = """
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#ffffff;--ink:#1b2128;--soft:#55606c;--rule:#d8dde3;
--good:#00693f;--good-back:#e2f4ea;--bad:#a32a12;--bad-back:#fbe8e3;--wait:#6b5200;--wait-back:#fbf1d2;$light}
@media (prefers-color-scheme:dark){:root{--paper:#12161b;--card:#1a2027;--ink:#e6eaef;--soft:#a5b0bc;--rule:#343d48;
--good:#5fd6a0;--good-back:#12352a;--bad:#ff9d85;--bad-back:#40201a;--wait:#f0cf6b;--wait-back:#3a3014;$dark}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif}
header,main{max-width:62rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.75rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 .8rem}
h3{font-size:1rem;margin:1.2rem 0 .5rem}
header p{margin:.2rem 0;color:var(--soft);overflow-wrap:anywhere}
a{color:var(--blue)}
:focus-visible{outline:2px solid var(--blue);outline-offset:2px}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1rem;list-style:none;margin:1rem 0 0;padding:0}
section{background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:1.1rem 1.2rem;margin:1.2rem 0;
scroll-margin-top:1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem 1.5rem;margin:0}
.tiles dt{color:var(--soft);font-size:.86rem;overflow-wrap:anywhere}
.tiles dd{margin:0;font-size:1.45rem;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums}
.tiles small{display:block;font-size:.8rem;font-weight:400;color:var(--soft);line-height:1.4}
figure{margin:0}
.plot{overflow-x:auto}
.plot svg{display:block;width:100%;min-width:38rem;height:auto}
figcaption{color:var(--soft);font-size:.88rem;margin-top:.5rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
.caption{color:var(--soft);font-size:.88rem;margin:.8rem 0 .4rem}h2+.caption{margin-top:0}
.wrap td{white-space:normal;overflow-wrap:anywhere}
th,td{padding:.4rem .7rem;border-bottom:1px solid var(--rule);text-align:left;white-space:nowrap;vertical-align:top}
thead th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom}
tbody th{font-weight:600}
.number{text-align:right}
.diagram{--row:6.6rem;--wires:var(--gutter);position:relative;padding-left:var(--wires)}
.wires{position:absolute;left:0;top:0;width:var(--wires);height:calc(var(--rows)*var(--row))}
.wires g{color:var(--kind,var(--grey))}
.wire{fill:none;stroke:currentColor;stroke-width:2;vector-effect:non-scaling-stroke}
.flow{list-style:none;margin:0;padding:0}
.flow li{height:calc(var(--row) - .5rem);margin-bottom:.5rem;overflow:hidden;border:1px solid var(--rule);
border-left:4px solid var(--kind,var(--grey));border-radius:.45rem;padding:.3rem .7rem;font-size:.88rem;
line-height:1.35}
.flow .top{display:flex;gap:.1rem .5rem;align-items:baseline;font-size:1rem}
.flow .top b{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.flow .badge{margin-left:auto}
.step,.kind,.from,.spent{color:var(--soft)}
.from{overflow-wrap:anywhere}
.spent{position:relative;padding-bottom:.4rem;margin-bottom:.1rem}
.bar{display:block;height:.25rem;min-width:2px;border-radius:.2rem;background:var(--kind,var(--blue))}
.spent .bar{position:absolute;left:0;bottom:0}
.sft{--kind:var(--blue)}.distill{--kind:var(--purple)}.rollout{--kind:var(--orange)}.capture{--kind:var(--green)}
.score,.reject{--kind:var(--wine)}.evaluate,.export{--kind:var(--vermillion)}
.controls{display:flex;flex-wrap:wrap;gap:.5rem .9rem;align-items:center;margin:.4rem 0}
.controls select,.controls input,.controls button{font:inherit;font-size:.9rem;color:var(--ink);background:var(--paper);
border:1px solid var(--rule);border-radius:.35rem;padding:.25rem .5rem;max-width:100%}
.controls button:disabled{opacity:.5}
.tok{border-bottom:2px solid transparent;padding:0 .06rem;cursor:default}
.doubtful{border-bottom:2px dotted var(--orange)}
.unlikely{border-bottom:2px dashed var(--vermillion)}
.strange{border-bottom:2px solid var(--bad);background:var(--bad-back)}
.chosen{outline:2px solid var(--blue);border-radius:.15rem}
.panel{min-height:1.5rem;margin-top:.5rem;color:var(--soft);font-size:.88rem}
.panel table{width:auto;max-width:100%;color:var(--ink)}
.panel th,.panel td{padding:.1rem .6rem .1rem 0;border:0;font-weight:400;vertical-align:middle}
.panel .here th,.panel .here td{font-weight:700}
.panel .meter{width:8rem}
.badge{display:inline-block;border-radius:1rem;padding:.05rem .65rem;font-size:.82rem;font-weight:600;
white-space:nowrap}
.good{color:var(--good);background:var(--good-back)}
.bad{color:var(--bad);background:var(--bad-back)}
.wait{color:var(--wait);background:var(--wait-back)}
.sample{border-top:1px solid var(--rule);padding:.8rem 0}
.sample header{display:flex;flex-wrap:wrap;gap:.3rem .8rem;align-items:baseline;padding:0;margin:0;max-width:none}
.sample dl{display:grid;grid-template-columns:6.5rem 1fr;gap:.25rem .8rem;margin:.5rem 0 0;align-items:baseline}
.sample dt{color:var(--soft);font-size:.88rem}
.sample dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
.none{color:var(--soft);font-style:italic}
pre{margin:.6rem 0 0;padding:.8rem;background:var(--paper);border:1px solid var(--rule);border-radius:.45rem;
overflow-x:auto;font:.82rem/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
summary{cursor:pointer;font-weight:600}
details+details{margin-top:.6rem}
@media (max-width:36rem){.diagram{--row:9.4rem;--wires:calc(var(--gutter)*.7)}
.flow .word{display:none}.panel .meter{width:4rem}body{font-size:15px}
section{padding:.9rem .8rem}.sample dl{grid-template-columns:1fr;gap:0}.sample dd{margin-bottom:.45rem}}
@media print{section{break-inside:auto}figure,.sample,.flow li,tr{break-inside:avoid}.plot svg{min-width:0}nav,
.controls{display:none}.scroll,.plot{overflow:visible}}
"""
