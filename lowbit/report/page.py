"""One self-contained HTML file: no network, figures inline, a script of a few lines only where a table is to be sorted."""

import html
import re
from collections.abc import Sequence

from .tables import Table

_STYLE = """
nav { font-size: .88rem; margin: 1rem 0; } nav a { margin-right: 1.1rem; white-space: nowrap; } a { color: #2b5c9e; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1e21; background: #fff; max-width: 1240px; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
.lead, .note, figcaption { color: #5a6068; font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; margin: 1.4rem 0 .6rem; }
th, td { padding: .38rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e6ea; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #1c1e21; font-weight: 600; }
tbody tr:hover { background: #f5f7fa; }
.row { display: flex; flex-wrap: wrap; gap: 0 2rem; } .row > div { min-width: 0; max-width: 100%; } .row :is(figcaption, .note) { contain: inline-size; }
figure { margin: 0; } svg { max-width: 100%; height: auto; }
details { margin: .8rem 0; } summary { cursor: pointer; color: #2b5c9e; }
pre { background: #f5f7fa; padding: .9rem; overflow-x: auto; font-size: .8rem; line-height: 1.4; }
.sortable th { cursor: pointer; }
@media (prefers-color-scheme: dark) {
  :root { color-scheme: dark; } body { color: #e3e5e8; background: #16181b; } a, summary { color: #8ab4f8; }
  .lead, .note, figcaption { color: #9aa1a9; } th, td { border-bottom-color: #2e3238; } th { border-bottom-color: #e3e5e8; }
  tbody tr:hover, pre { background: #202328; } figure svg { background: #fff; border-radius: 6px; padding: .4rem; }
}
"""


_SORT = """
for (const head of document.querySelectorAll(".sortable th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], at = head.cellIndex, up = head.dataset.up = head.dataset.up === "1" ? "" : "1";
  const key = row => { const text = row.cells[at].textContent, n = parseFloat(text.replace(/,/g, "")); return isNaN(n) ? text : n; };
  const sign = up ? 1 : -1;
  body.append(...[...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    return sign * (typeof x === typeof y ? (x > y) - (x < y) : typeof x === "number" ? -1 : 1);
  }));
};
"""


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """Returns the whole file as text.

    Args:
        title: plain text.
        lead: plain text under the title.
        sections: HTML from `table`, `figure`, `section`, `details` and `row`. Where three have headings, the page begins with links
            to them.
    """
    body, heads = "\n".join(sections), []

    def anchored(found: re.Match[str]) -> str:
        heads.append(found[1])
        return f'<h2 id="part-{len(heads)}">{found[1]}</h2>'

    body = re.sub("<h2>(.*?)</h2>", anchored, body)
    links = " ".join(f'<a href="#part-{i}">{head}</a>' for i, head in enumerate(heads, 1))  # lines break at spaces
    if len(heads) > 2:
        body = f"<nav>{links}</nav>\n{body}"
    if 'class="sortable"' in body:
        body += f"\n<script>{_SORT}</script>"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n' + body + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Returns a heading and what stands under it."""
    return "\n".join((f"<h2>{html.escape(title)}</h2>", *parts))


def links(targets: Sequence[tuple[str, str]]) -> str:
    """Returns links as one paragraph: texts and relative addresses."""
    return "<p>" + " · ".join(f'<a href="{html.escape(to)}">{html.escape(text)}</a>' for text, to in targets) + "</p>"


def table(content: Table, note: str = "", *, is_sortable: bool = False) -> str:
    """Returns a table as HTML, a note below it; a sortable one is ordered by a column when its head is clicked."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in content.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in content.rows
    )
    kind = ' class="sortable"' if is_sortable else ""
    body = (
        f'<div class="scroll"><table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
    )
    return body + (f'\n<p class="note">{html.escape(note)}</p>' if note else "")


def figure(title: str, svg: str, *, caption: str = "") -> str:
    """Returns a heading, an inline figure and its caption."""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<h2>{html.escape(title)}</h2>\n<figure>{svg}{below}</figure>"


def row(*parts: str) -> str:
    """Returns parts beside each other where the page is wide enough, below each other else."""
    return '<div class="row">' + "\n".join(f"<div>{part}</div>" for part in parts) + "</div>" if parts else ""


def details(title: str, text: str) -> str:
    """Returns preformatted text behind a line to click on."""
    return f"<details><summary>{html.escape(title)}</summary>\n<pre>{html.escape(text)}</pre></details>"
