"""Cells of a sweep that were computed in folders of their own, each by another process: how they come together.

``<folder>/cells/<key>/`` belongs to whoever runs the sweep with ``--cell``. Such a folder takes the unpruned cell from
wherever it is finished; the sweep itself takes everything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from tokenprune.core.errors import ConfigError, hint
from tokenprune.sweeps.progress import Group
from tokenprune.sweeps.store import RunFolder

CELLS = "cells"


def select_cell(groups: Sequence[Group], folder: RunFolder, key: str) -> tuple[list[Group], RunFolder]:
    """One cell of a sweep, with the unpruned cell, and the folder that it has for itself.

    Args:
        groups: all cells.
        folder: of the sweep.
        key: of the cell.

    Raises:
        ConfigError: if there is no such cell.
    """
    for group in groups:
        for cell in group.cells:
            if cell.key == key:
                cells = tuple(dict.fromkeys((group.cells[0].key, key)))
                own = tuple(each for each in group.cells if each.key in cells)
                return [dataclasses.replace(group, cells=own)], RunFolder(folder.path / CELLS / key)
    known = [cell.key for group in groups for cell in group.cells]
    raise ConfigError(f"the sweep has no cell {key!r}; --dry-run shows their keys; {hint(key, known)}")


def source_folders(folder: RunFolder) -> list[RunFolder]:
    """Folders that may hold finished cells for a folder: the other cells' ones, and the sweep's for a cell's."""
    inside = folder.path.parent.name == CELLS
    whole = folder.path.parent.parent if inside else folder.path
    found: list[Path] = [*([whole] if inside else []), *sorted(whole.glob(f"{CELLS}/*/"))]
    return [RunFolder(path) for path in found if path != folder.path]


def merge_folders(folder: RunFolder, keys: Collection[str], sources: Iterable[RunFolder]) -> None:
    """Copy finished cells that a folder lacks.

    Args:
        folder: that is being written.
        keys: of the cells that it is about.
        sources: other folders; what half of a line they hold does not count.

    Raises:
        DataError: if a journal cannot be read or written.
    """
    have = {line["cell"] for line in folder.results if line["status"] == "ok"}
    for source in sources:
        wanted = {line["cell"]: line for line in source.results if line["status"] == "ok"}
        wanted = {key: line for key, line in wanted.items() if key in keys and key not in have}
        if wanted:
            for lines in source.answers(wanted).values():
                folder.samples.append(*lines.values(), sync=False)
            folder.samples.sync()
            folder.results.append(*wanted.values())
            have |= wanted.keys()
