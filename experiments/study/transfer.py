"""Does a policy carry over: from one kind of question to another, and from one base pruner to another?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from study.grid import Grid
from study.results import Header, Row
from study.tables import markdown, percent

POOLED, CHANCE = "all kinds", "chance"


def policies_by_kind(grid: Grid, budget: float) -> dict[str, Row]:
    """The policy of least KL on the validation questions of each kind, and on all of them."""
    asked = np.array(grid.header.validation)
    values = np.stack([row.first_token for row in grid.rows])
    chosen = {kind: grid.choose(values[:, asked == kind].mean(1), budget) for kind in grid.header.kinds}
    return {name: grid.rows[at] for name, at in {**chosen, POOLED: grid.choose(values.mean(1), budget)}.items()}


def accuracy_by_kind(row: Row, header: Header) -> NDArray[np.float64]:
    """(kinds + 1,) accuracy on the test questions of each kind, and on all."""
    asked = np.array(header.test)
    return np.array([*(row.right[asked == kind].mean() for kind in header.kinds), row.right.mean()])


def across_kinds(grid: Grid, budget: float) -> NDArray[np.float64]:
    """(kinds + 2, kinds + 1) accuracy: policy of a kind (then of all kinds, then chance), on a kind (then on all)."""
    fitted = [accuracy_by_kind(row, grid.header) for row in policies_by_kind(grid, budget).values()]
    edge = [accuracy_by_kind(grid.rows[at], grid.header) for at in np.flatnonzero(grid.edge(budget))]
    return np.stack([*fitted, np.mean(edge, 0)])


def across_bases(grids: Sequence[Grid], budget: float) -> NDArray[np.float64]:
    """(bases + 1, bases) test accuracy: policy of a base (then chance), used with a base."""
    chosen = [grid.choose(grid.divergence, budget) for grid in grids]
    fitted = [[grid.accuracy[at] for grid in grids] for at in chosen]
    return np.array([*fitted, [grid.accuracy[grid.edge(budget)].mean() for grid in grids]])


def section(header: Header, rows: Sequence[Row], bases: Sequence[str], folder: Path) -> list[str]:
    """Paragraphs of the report; the plots are written beside it."""
    grid, kinds = Grid.of(header, rows, bases[0]), header.kinds
    names, budgets = [*kinds, POOLED, CHANCE], header.budgets
    tables = {name: across_kinds(grid, budget) for name, budget in budgets.items()}
    lost = np.mean([_lost(table[:, :-1], list(range(len(kinds)))) for table in tables.values()], 0)
    draw(lost, names, kinds, "policy fitted on", "used on", folder / "transfer_kinds.png")
    found = [
        "## From kind to kind",
        f"Policy of least KL on the validation questions of one kind (rows), over {grid.base}; accuracy in % on the "
        "test questions of each kind (columns). `chance`: mean over the policies that use the budget up.",
    ]
    for number, table in tables.items():
        chosen = [row.name for row in policies_by_kind(grid, budgets[number]).values()]
        lines = zip(names, [*chosen, "-"], table, strict=True)
        body = [[name, policy, *map(percent, line)] for name, policy, line in lines]
        found.append(markdown([f"budget {number}", "policy", *kinds, "all"], body))
    body = [[name, *map(percent, line), percent(line.mean())] for name, line in zip(names, lost, strict=True)]
    found += [
        "Points lost against the policy fitted on the same kind, mean over the budgets:",
        markdown(["fitted on", *kinds, "mean"], body),
        "![points lost from kind to kind](transfer_kinds.png)",
    ]
    return [*found, *(_bases(header, rows, bases, folder) if len(bases) > 1 else [])]


def _bases(header: Header, rows: Sequence[Row], bases: Sequence[str], folder: Path) -> list[str]:
    grids = [Grid.of(header, rows, base) for base in bases]
    tokens = set.intersection(*(set(grid.sizes[:, 2].tolist()) for grid in grids))
    grids, names = [grid.only(tokens) for grid in grids], [*bases, CHANCE]
    tables = {name: across_bases(grids, budget) for name, budget in header.budgets.items()}
    lost = np.mean([_lost(table, list(range(len(bases)))) for table in tables.values()], 0)
    draw(lost, names, bases, "policy fitted over", "used over", folder / "transfer_bases.png")
    body = []
    for number, table in tables.items():
        chosen = [grid.rows[grid.choose(grid.divergence, header.budgets[number])].name for grid in grids]
        lines = zip(names, [*chosen, "-"], table, strict=True)
        body += [[str(number), name, policy, *map(percent, line)] for name, policy, line in lines]
    return [
        "## From base to base",
        f"Policy of least KL over one base pruner (rows), used over each (columns): test accuracy in %. The grids have "
        f"{', '.join(map(str, sorted(tokens)))} visual tokens in common; policies are chosen from these.",
        markdown(["budget", "fitted over", "policy", *bases], body),
        "![points lost from base to base](transfer_bases.png)",
    ]


def _lost(table: NDArray[np.float64], own: Sequence[int]) -> NDArray[np.float64]:
    """The accuracy of the policy that was fitted for a column, less that of each row's."""
    lost: NDArray[np.float64] = table[own, own][None] - table
    return lost


def draw(
    lost: NDArray[np.float64], names: Sequence[str], columns: Sequence[str], down: str, across: str, path: Path
) -> None:
    """A table of points lost, coloured."""
    figure = Figure(figsize=(2.6 + 0.85 * len(columns), 1.4 + 0.45 * len(names)), layout="constrained")
    axes, points = figure.subplots(), 100 * lost
    most = max(1.0, float(np.abs(points).max()))
    axes.imshow(points, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(points):
        shade = "white" if abs(value) > 0.6 * most else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=9, color=shade)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=across, ylabel=down, title="points of accuracy lost")
    figure.savefig(path, dpi=160)
