"""Sections of a report that others register."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenprune.core.registry import enter
from tokenprune.report.document import Block
from tokenprune.report.rows import Section

Writer = Callable[[Section], Sequence[Block]]

SECTIONS: dict[str, Writer] = {}


def register_section(name: str) -> Callable[[Writer], Writer]:
    """Decorator of a function that writes a part of every report, in all formats, behind what is shipped.

    The function gets the rows of one model and task, and returns headings, paragraphs, tables and so on; see
    ``report.document``.

    Args:
        name: of the part, for messages.

    Raises:
        RegistryError: if the name is malformed or taken.
    """

    def register(writer: Writer) -> Writer:
        enter("report section", SECTIONS, name, writer)
        return writer

    return register
