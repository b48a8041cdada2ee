"""The report of a study: what its results say about the sum, the depth-wise rule, the objective, and transfer.

As a script: ``python experiments/study/report.py experiments/dop_additivity --out report``, which writes
``report/dop_additivity/report.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds its own folder alone

from study import additivity, free_subsets, objective, transfer
from study.command import ending
from study.grid import Grid
from study.results import load
from tokenprune.core.errors import DataError


def write(results: Path, folder: Path) -> Path:
    """Write ``report.md`` and its pictures.

    Args:
        results: file that a study left.
        folder: where to.

    Returns:
        The report's path.

    Raises:
        DataError: if the file cannot be read, or lacks the policies that a fit would measure, or the folder cannot be
            made.
    """
    header, rows = load(results)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"folder {str(folder)!r} cannot be written: {error.strerror}") from None
    bases = list(dict.fromkeys(row.base for row in rows))
    grid = Grid.of(header, rows, bases[0])
    sections = [
        "# Study of depth-wise policies",
        f"{len(rows)} policies, {len(header.validation)} validation and {len(header.test)} test questions. A policy is "
        f"(depth of attention, depth of the MLP, visual tokens) of ({header.layers}, {header.layers}, "
        f"{header.visual_tokens}). A budget n is what n visual tokens cost that take part in everything, with "
        f"{header.text_tokens} text tokens.",
        *additivity.section(grid, folder),
        *free_subsets.section(header, rows, bases[0], folder),
        *objective.section(grid, folder),
        *transfer.section(header, rows, bases, folder),
    ]
    path = folder / "report.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with the results.jsonl of a study")
    parser.add_argument("--out", type=Path, help="a report goes to a folder of the same name in here; default: its own")
    asked = parser.parse_args(arguments)
    with ending("study"):
        for folder in asked.folders:
            to = asked.out / folder.resolve().name if asked.out else folder
            print(f"report: {write(folder / 'results.jsonl', to)}")


if __name__ == "__main__":
    main()
