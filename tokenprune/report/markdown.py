"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenprune.report.document import Block, Code, Heading, Items, Paragraph, Picture, Table


def markdown(blocks: Sequence[Block]) -> str:
    """A report as the text of a Markdown file."""
    return "\n\n".join(map(_block, blocks)) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text):
            return _plain(text)
        case Items(pairs):
            return "\n".join(f"- **{_plain(term)}**: {_plain(meaning)}." for term, meaning in pairs)
        case Code(text):
            return f"```\n{text}\n```"
        case Picture(file, caption):
            return f"![{_plain(caption)}]({file})"
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    ruler = [*["---"] * table.words, *["---:"] * (len(table.header) - table.words)]
    lines = [map(_plain, table.header), ruler, *(map(_plain, row) for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text with the characters escaped that would mean something else."""
    return re.sub(r"([\\|*<`\[\]])", r"\\\1", " ".join(text.split()))
