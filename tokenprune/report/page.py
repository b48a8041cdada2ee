"""A report as one HTML page that needs nothing else: pictures inside it, no script, readable on screen and in print."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

from tokenprune.report.document import Block, Code, Heading, Items, Paragraph, Picture, Table

CONTROL = re.compile(r"[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML may not hold
_FIRST = ' class="first"'  # a line above each pruner
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1a1a1a; background: #fff;
  max-width: 76rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 1rem 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .6rem; border-bottom: 1px solid #bbb; padding-bottom: .2rem; }
h3 { font-size: 1.08rem; margin: 1.8rem 0 .5rem; }
p, dl { max-width: 52rem; }
nav ol { columns: 3 14rem; padding-left: 1.4rem; margin: .5rem 0; }
nav .h3 { margin-left: 1rem; }
a { color: #0b5394; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .22rem .7rem; text-align: right; white-space: nowrap; }
th.word, td.word { text-align: left; white-space: normal; min-width: 9rem; }
thead { border-top: 2px solid #1a1a1a; border-bottom: 1px solid #1a1a1a; }
thead th { white-space: normal; vertical-align: bottom; }
tbody { border-bottom: 2px solid #1a1a1a; }
tbody tr.first { border-top: 1px solid #ccc; }
tbody tr:hover { background: #f0f4f8; }
dt { font-weight: 600; float: left; clear: left; margin-right: .5rem; }
dd { margin: 0 0 .25rem; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: .88rem; color: #444; max-width: 52rem; }
pre { background: #f5f5f5; border: 1px solid #ddd; padding: .7rem; overflow-x: auto; font-size: .82rem; }
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  body { font-size: 10pt; max-width: none; padding: 0; }
  nav { display: none; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .1rem .3rem; }
  th.word, td.word { min-width: 5rem; overflow-wrap: anywhere; }
  tr, figure { break-inside: avoid; }
  h1, h2, h3, caption { break-after: avoid; }
  figure img { max-height: 165mm; }
  pre { white-space: pre-wrap; }
}
"""


def page(blocks: Sequence[Block], folder: Path) -> str:
    """A report as the text of an HTML file; it is well-formed XML too.

    Args:
        blocks: of the report; the first is its title.
        folder: where the pictures are.

    Raises:
        OSError: if a picture cannot be read.
    """
    first, *rest = blocks
    title = escape(first.text) if isinstance(first, Heading) else "report"
    anchors = [f"s{at}" for at in range(len(rest))]
    body = [_block(block, anchor, folder) for block, anchor in zip(rest, anchors, strict=True)]
    links = [
        f'<li class="h{block.level}"><a href="#{anchor}">{escape(block.text)}</a></li>'
        for block, anchor in zip(rest, anchors, strict=True)
        if isinstance(block, Heading)
    ]
    contents = ['<nav aria-label="contents"><ol>', *links, "</ol></nav>"] if links else []
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            f'<head>\n<meta charset="utf-8"/>\n<title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>",
            *contents,
            *body,
            "</body>\n</html>\n",
        ]
    )


def escape(text: str) -> str:
    """Text as HTML shows it."""
    return html.escape(CONTROL.sub("�", text))


def _block(block: Block, anchor: str, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level} id="{anchor}">{escape(text)}</h{level}>'
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Items(pairs):
            items = [f"<dt>{escape(term)}</dt><dd>{escape(meaning)}.</dd>" for term, meaning in pairs]
            return "\n".join(["<dl>", *items, "</dl>"])
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Picture(file, caption):
            data = base64.b64encode((folder / file).read_bytes()).decode()
            image = f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}"/>'
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    lines, before = [], ""
    for row in table.rows:
        lines.append(f"<tr{'' if row[0] == before else _FIRST}>{_cells('td', row, table.words)}</tr>")
        before = row[0]
    return "\n".join(
        [
            f'<div class="wide"><table><caption>{escape(table.caption)}</caption>',
            f"<thead><tr>{_cells('th', table.header, table.words)}</tr></thead>",
            "<tbody>",
            *lines,
            "</tbody></table></div>",
        ]
    )


def _cells(tag: str, cells: Sequence[str], words: int) -> str:
    scope = ' scope="col"' if tag == "th" else ""
    texts = [(escape(cell), ' class="word"' if at < words else "") for at, cell in enumerate(cells)]
    return "".join(f"<{tag}{scope}{kind}>{text}</{tag}>" for text, kind in texts)
