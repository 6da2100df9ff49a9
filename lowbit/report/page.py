"""One self-contained HTML file: no script, no network, figures inline."""

import html
from collections.abc import Sequence

from .tables import Table

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1e21; background: #fff; max-width: 1240px; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
.lead, .note, figcaption { color: #5a6068; font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; margin: 1.4rem 0 .6rem; }
th, td { padding: .38rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e6ea; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #1c1e21; font-weight: 600; }
tbody tr:hover { background: #f5f7fa; }
figure { margin: 0; } svg { max-width: 100%; height: auto; }
details { margin: .8rem 0; } summary { cursor: pointer; color: #2b5c9e; }
pre { background: #f5f7fa; padding: .9rem; overflow-x: auto; font-size: .8rem; line-height: 1.4; }
"""


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """Returns the whole file as text.

    Args:
        title: plain text.
        lead: plain text under the title.
        sections: HTML from `table`, `figure` and `details`.
    """
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n'
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def table(content: Table, note: str = "") -> str:
    """Returns a table as HTML, a note below it."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in content.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in content.rows
    )
    body = f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
    return body + (f'\n<p class="note">{html.escape(note)}</p>' if note else "")


def figure(title: str, svg: str, *, caption: str = "") -> str:
    """Returns a heading, an inline figure and its caption."""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<h2>{html.escape(title)}</h2>\n<figure>{svg}{below}</figure>"


def details(title: str, text: str) -> str:
    """Returns preformatted text behind a line to click on."""
    return f"<details><summary>{html.escape(title)}</summary>\n<pre>{html.escape(text)}</pre></details>"
