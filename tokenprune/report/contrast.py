"""Two pruners in a report: which two, and how far what they keep of the same images overlaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenprune.core.errors import DataError, hint
from tokenprune.core.sample import Sample
from tokenprune.report.difference import draw_difference, kept_last
from tokenprune.report.document import Block, Heading, Items, Paragraph, Picture, Table
from tokenprune.report.numbers import budget, percent
from tokenprune.report.pictures import BUDGETS, Lines, Place, drawable
from tokenprune.report.rows import Row, Section
from tokenprune.sweeps.overlay import Line


@dataclass(frozen=True)
class Overlap:
    """How far what two pruners kept overlaps, mean over images.

    Attributes:
        images: how many.
        both: visual tokens that both kept.
        first_only: visual tokens that the first alone kept.
        second_only: visual tokens that the second alone kept.
        chance: visual tokens that both would keep if each kept as many at random.
    """

    images: int
    both: float
    first_only: float
    second_only: float
    chance: float

    @property
    def share(self) -> float:
        """Tokens that both keep, as a share of the tokens that at least one keeps."""
        return self.both / max(1e-9, self.both + self.first_only + self.second_only)

    @property
    def chance_share(self) -> float:
        """Tokens that both would keep at random, as a share of the tokens that at least one would."""
        total = 2 * self.both + self.first_only + self.second_only
        return self.chance / max(1e-9, total - self.chance)


def overlap(first: Mapping[str, Line], second: Mapping[str, Line]) -> Overlap | None:
    """What two cells kept of the same images; None if they share no question.

    Args:
        first: lines of ``samples.jsonl`` by sample.
        second: lines of the other cell by sample.
    """
    counts = []
    for sample in sorted(first.keys() & second.keys()):
        a, b = kept_last(first[sample]), kept_last(second[sample])
        counts.append((len(a & b), len(a - b), len(b - a), len(a) * len(b) / max(1, first[sample]["visual_tokens"])))
    if not counts:
        return None
    return Overlap(len(counts), *(float(mean) for mean in np.mean(counts, axis=0)))


@dataclass(frozen=True)
class PrunerPair:
    """Two pruners of a section whose kept tokens are compared.

    Attributes:
        names: of A and B.
        rows: pairs of rows at the same budget.
    """

    names: tuple[str, str]
    rows: tuple[tuple[Row, Row], ...]

    @property
    def cells(self) -> set[str]:
        """Keys of the cells whose answers are needed."""
        return {row.any.cell for pair in self.rows for row in pair}


def choose_pruners(section: Section, names: tuple[str, str] | None) -> PrunerPair | None:
    """Choose the pruners to compare: by name, or the studied one and ``random``; None if there is no such pair.

    Args:
        section: of the records.
        names: labels of A and B.

    Raises:
        DataError: if a name is not one of the section's, or there is no budget that both have.
    """
    pruned = [row for row in section.done if row.any.budget]
    labels = list(dict.fromkeys(row.label for row in pruned))
    for name in names or ():
        if name not in labels:
            raise DataError(f"there is no pruner {name!r} in {section.title}; {hint(name, labels)}")
    if not names:
        others = [label for label in (section.studied, *reversed(labels)) if label in labels and label != "random"]
        if not others or "random" not in labels:
            return None
        names = (others[0], "random")
    by_budget = {budget(row.any.budget): row for row in pruned if row.label == names[1]}
    rows = [row for row in pruned if row.label == names[0]]
    found = tuple((row, by_budget[at]) for row in rows if (at := budget(row.any.budget)) in by_budget)
    return PrunerPair(names, found) if found else None


def difference(
    section: Section, pair: PrunerPair, samples: Sequence[Sample], lines: Lines, place: Place
) -> tuple[list[list[Any]], list[Block]]:
    """How what two pruners keep differs: rows of a CSV file, and what a report says of it.

    Args:
        section: of the records.
        pair: the two.
        samples: the questions to show.
        lines: of ``samples.jsonl``, all of the pair's cells.
        place: where the picture goes.
    """
    sheet, rows = [], []
    for first, second in pair.rows:
        found = overlap(lines.get(first.any.cell, {}), lines.get(second.any.cell, {}))
        if not found:
            continue
        spent = [row.mean("average_tokens") for row in (first, second)]
        where = [section.model, section.task, section.detail, *pair.names, *spent]
        sheet.append([*where, found.images, found.both, found.first_only, found.second_only, found.share])
        counts = [f"{value:.1f}" for value in (found.both, found.first_only, found.second_only)]
        rows.append([budget(first.any.budget), *counts, percent(found.share), percent(found.chance_share)])
    if not rows:
        return [], []
    header = ["budget", "both", "A alone", "B alone", "overlap %", "by chance %"]
    seeds = " (of several seeds the first)" if any(len(row.records) > 1 for rows in pair.rows for row in rows) else ""
    who = f"A is {pair.names[0]}, B is {pair.names[1]}{seeds}"
    blocks: list[Block] = [
        Heading("Difference of two pruners"),
        Paragraph(f"{who}; visual tokens alive after the last stage, mean over the images."),
        Table(f"Kept tokens of {pair.names[0]} and {pair.names[1]}, {section.title}", header, rows),
        Items(
            [
                ("overlap", "of the tokens that at least one keeps, those that both keep"),
                ("by chance", "the overlap if each kept as many tokens at random"),
            ]
        ),
    ]
    columns = {
        budget(a.any.budget): (lines.get(a.any.cell, {}), lines.get(b.any.cell, {})) for a, b in pair.rows[:BUDGETS]
    }
    if drawable(samples, [a for a, _ in pair.rows], lines):
        path = place.file(f"difference_{pair.names[0]}_{pair.names[1]}")
        draw_difference(samples, columns, pair.names, path)
        blocks.append(Picture(path.name, f"What {pair.names[0]} (A) and {pair.names[1]} (B) keep of the same images."))
    return sheet, blocks
