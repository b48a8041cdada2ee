"""The pictures of a report that is about all pruners: plots, heat maps, and what each kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.core.errors import DataError
from tokenprune.core.sample import Sample
from tokenprune.core.turn import picture_size
from tokenprune.report import heatmap
from tokenprune.report.document import Block, Heading, Paragraph, Picture
from tokenprune.report.plots import pareto
from tokenprune.report.rows import Row, Section
from tokenprune.sweeps.overlay import Line, draw_kept
from tokenprune.sweeps.store import RunFolder

PICTURED = 6  # questions in a picture of kept tokens
PRUNERS = 10  # pictures of kept tokens
BUDGETS = 5  # columns of such a picture
Lines = Mapping[str, Mapping[str, Line]]  # by cell and question
PLOTS = {
    "pareto": ("flops", "the LLM's prefill FLOPs"),
    "pareto_tokens": ("tokens", "visual tokens"),
    "pareto_time": ("time", "measured time"),
}


@dataclass(frozen=True)
class Place:
    """The folder that pictures go to, and how their names begin.

    Attributes:
        folder: of the files.
        prefix: of their names, of a section among several.
    """

    folder: Path
    prefix: str = ""

    def file(self, name: str) -> Path:
        """The path of a picture."""
        return self.folder / f"{self.prefix}{slug(name)}.png"


def slug(name: str) -> str:
    """A name that a file can have."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name)


def plots(section: Section, place: Place) -> list[Block]:
    """Plots of accuracy over each cost that is known."""
    blocks: list[Block] = []
    for name, (by, what) in PLOTS.items():
        path = place.file(name)
        if pareto(section.done, path, by):
            what = f"Accuracy over {what}, {section.title}; bars: standard error over the questions."
            blocks.append(Picture(path.name, f"{what} Grey steps: what nothing as cheap beats."))
    return [Heading("Accuracy over cost"), *blocks] if blocks else []


def heat_maps(section: Section, place: Place) -> list[Block]:
    """A heat map of each pruner at least two of whose options vary."""
    blocks: list[Block] = []
    for grid in heatmap.grids(section.done):
        path = place.file(f"grid_{grid.pruner}")
        heatmap.draw(grid, path)
        told = f"{grid.pruner}: accuracy in % over {grid.across} (across) and {grid.down} (down), a panel a budget"
        blocks.append(Picture(path.name, f"{told} with colours of its own; bold: the panel's best; –: not run."))
    return [Heading("Grids of options"), *blocks] if blocks else []


def shown_ids(samples: Sequence[Sample], answered: Mapping[str, Any]) -> list[str]:
    """Ids of the questions about one picture that are drawn: the first of each kind, or the first if there is one.

    Args:
        samples: in the order of the task.
        answered: by question.
    """
    known = [sample for sample in samples if sample.id in answered and picture_size(sample.turn)]
    first = {sample.kind: sample.id for sample in reversed(known)}
    kinds = dict.fromkeys(sample.kind for sample in known)
    ids = [first[kind] for kind in kinds] if len(kinds) > 1 else list(dict.fromkeys(sample.id for sample in known))
    return ids[:PICTURED]


def asked_samples(samples: Iterable[Sample], ids: Sequence[str], lines: Mapping[str, Line]) -> list[Sample]:
    """The questions of some ids that were asked as the lines have it; another task may have the same ids."""
    found = {s.id: s for s in samples if s.id in lines and lines[s.id].get("question", s.question) == s.question}
    return [found[each] for each in ids if each in found]


def kept_pictures(section: Section, samples: Sequence[Sample], lines: Lines, place: Place) -> list[Block]:
    """Pictures of what pruners kept of the images, one a pruner.

    Args:
        section: of the records.
        samples: the questions to show.
        lines: of ``samples.jsonl``.
        place: where the pictures go.
    """
    labels = list(dict.fromkeys(row.label for row in section.done if row.any.budget))
    if not drawable(samples, section.done, lines):
        return []
    drawn = [label for label in dict.fromkeys(("random", section.studied, *labels)) if label in labels][:PRUNERS]
    blocks: list[Block] = []
    for label in sorted(drawn, key=labels.index):
        rows = [row for row in section.done if row.label in ("none", label)][: 1 + BUDGETS]
        columns = {f"{row.number('average_tokens'):.4g} tokens": lines.get(row.any.cell, {}) for row in rows}
        path = place.file(f"kept_{label}")
        draw_kept(samples, columns, label, path)
        blocks.append(Picture(path.name, f"What {label} keeps{_seed(rows[-1])}."))
    said = "Dropped patches are faded, those that left at a later stage less. The questions are the first of each kind."
    left = len(labels) - len(drawn)
    said += f" {left} more pruners are not drawn; --difference A B draws any two." if left else ""
    return [Heading("Kept tokens"), Paragraph(said), *blocks]


def _seed(row: Row) -> str:
    return " with its first seed" if len(row.records) > 1 else ""


def drawable(samples: Sequence[Sample], rows: Sequence[Row], lines: Lines) -> bool:
    """Whether at least one of the questions is on an image with a raster."""
    return any(lines.get(row.any.cell, {}).get(sample.id, {}).get("grid") for row in rows for sample in samples)


def lines_of(folder: RunFolder, wanted: Callable[[str, str], bool]) -> dict[str, dict[str, Line]]:
    """Lines of ``samples.jsonl`` by cell and question; a large file need not fit into memory.

    Args:
        folder: of the run.
        wanted: whether a cell's answer to a question is.

    Raises:
        DataError: if the file is of another version.
    """
    found: dict[str, dict[str, Line]] = {}
    for line in folder.samples:
        cell, sample = str(line.get("cell")), str(line.get("sample"))
        if wanted(cell, sample):
            if not {"stages", "grid", "visual_tokens", "answer", "correct"} <= line.keys():
                raise DataError(f"{folder.samples.path} is of another version; run the experiment again")
            found.setdefault(cell, {})[sample] = line
    return found
