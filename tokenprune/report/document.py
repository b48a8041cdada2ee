"""What a report is made of, whatever it is written as: blocks of plain text, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """The heading of a section.

    Attributes:
        text: plain.
        level: 1 is the report's title.
    """

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text.

    Attributes:
        text: plain.
    """

    text: str


@dataclass(frozen=True)
class Items:
    """A list of terms and their meanings.

    Attributes:
        pairs: a term and what it means, each.
    """

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Text that is shown as it is.

    Attributes:
        text: with its line breaks.
    """

    text: str


@dataclass(frozen=True)
class Table:
    """A table; its first columns are text, the others are numbers.

    Attributes:
        caption: plain text.
        header: of each column.
        rows: a cell a column.
        words: how many columns are text.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


@dataclass(frozen=True)
class Picture:
    """A PNG file beside the report.

    Attributes:
        file: its name.
        caption: what it shows.
    """

    file: str
    caption: str


Block = Heading | Paragraph | Items | Code | Table | Picture
