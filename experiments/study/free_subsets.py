"""Is it right to prune operations from the deepest layer up? Free removals against depth-wise ones at equal FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from study import agreement
from study.grid import Grid
from study.results import Header, Row
from study.tables import chance, markdown, millions, nats, percent
from tokenprune.core.plan import Operation
from tokenprune.report.plots import COLOURS, MARKERS
from tokenprune.report.significance import holm, mcnemar

SHARES = (0.85, 0.7, 0.55, 0.4)  # of the way from the least that such tokens can cost to what they cost in full
GRID, DEPTH_WISE, FREE = "two depths, whole grid", "depth-wise, greedy", "free, greedy"
WAYS = {GRID: "depth_wise", DEPTH_WISE: "greedy_depth_wise", FREE: "greedy_free"}
OPERATIONS = {Operation.ATTENTION_SOURCE: "K/V", Operation.ATTENTION_RECEIVER: "Q/O", Operation.MLP: "MLP"}


@dataclass(frozen=True, eq=False)
class Rivals:
    """Plans for the same visual tokens.

    Attributes:
        tokens: how many.
        grid: the depth-wise policies.
        rows: by way of finding them.
    """

    tokens: int
    grid: Grid
    rows: dict[str, list[Row]]

    @classmethod
    def of(cls, header: Header, rows: Sequence[Row], base: str, tokens: int) -> Rivals:
        """All plans for so many tokens of a base."""
        grid = Grid.of(header, rows, base).only({tokens})
        found = {
            way: [row for row in rows if (row.set, row.base, row.tokens) == (name, base, tokens)]
            for way, name in WAYS.items()
        }
        return cls(tokens, grid, {**found, GRID: list(grid.rows)})

    def budgets(self) -> list[float]:
        """FLOPs at which they are compared."""
        least, full = self.grid.flops.min(), self.grid.flops.max()
        return [float(least + share * (full - least)) for share in SHARES]

    def choose(self, way: str, budget: float) -> Row:
        """That of least validation KL within a budget."""
        rows = self.rows[way]
        return rows[agreement.choose([row.divergence for row in rows], [row.flops for row in rows], budget)]


def section(header: Header, rows: Sequence[Row], base: str, folder: Path) -> list[str]:
    """Paragraphs of the report, none if no operations were removed one by one; the plot is written beside it."""
    numbers = sorted({row.tokens for row in rows if row.set == WAYS[FREE]})
    if not numbers:
        return []
    found = [Rivals.of(header, rows, base, tokens) for tokens in numbers]
    draw(found, folder / "free_subsets.png")
    columns = ["tokens", "budget", "plans", "FLOPs", "KL", "test KL", "accuracy", "against two depths", "p"]
    return [
        "## Depth-wise against free",
        f"Plans for the same visual tokens of {base}, least validation KL within a budget of FLOPs; KL in nats, "
        "accuracy in %. `chance`: mean over the depth-wise policies that use the budget up. p: exact McNemar test "
        "against the best of two depths, Holm-corrected over the table.",
        markdown(columns, _table(found)),
        "In which order operations go, layers from 0; dead work goes with what made it dead and is not listed:",
        *(f"- {one.tokens} tokens, {way}: {_order(one.rows[way])}" for one in found for way in (FREE, DEPTH_WISE)),
        "![KL over FLOPs](free_subsets.png)",
    ]


def _table(found: Sequence[Rivals]) -> list[list[str]]:
    cells = [(one, budget, way) for one in found for budget in one.budgets() for way in WAYS]
    chosen = [one.choose(way, budget) for one, budget, way in cells]
    best = [one.choose(GRID, budget) for one, budget, _ in cells]
    tested = [cell[2] != GRID for cell in cells]
    p = [_p(a, b) for a, b, wanted in zip(chosen, best, tested, strict=True) if wanted]
    corrected, rows = iter(holm(p)), []
    for (one, budget, way), row, reference, wanted in zip(cells, chosen, best, tested, strict=True):
        where = [str(one.tokens), millions(budget)]
        if way == GRID:
            rows.append([*where, *_chance(one.grid, budget, reference)])
        numbers = [nats(row.divergence), nats(float(row.test_first_token.mean())), percent(row.accuracy)]
        gain = percent(row.accuracy - reference.accuracy) if wanted else "-"
        rows.append([*where, way, millions(row.flops), *numbers, gain, chance(next(corrected)) if wanted else "-"])
    return rows


def _chance(grid: Grid, budget: float, best: Row) -> list[str]:
    edge = grid.edge(budget)
    accuracy = float(grid.accuracy[edge].mean())
    numbers = [nats(grid.divergence[edge].mean()), nats(grid.test_divergence[edge].mean()), percent(accuracy)]
    return ["chance", millions(grid.flops[edge].mean()), *numbers, percent(accuracy - best.accuracy), "-"]


def _p(row: Row, best: Row) -> float:
    return mcnemar(int((row.right & ~best.right).sum()), int((best.right & ~row.right).sum()))


def _order(path: Sequence[Row]) -> str:
    """Which operation each step of a path removed: of those that went, the one that the others were alive for."""
    before, names = np.ones_like(path[0].active), []
    before[-1, [Operation.ATTENTION_RECEIVER, Operation.MLP]] = False  # dead from the start
    for row in path:
        gone = [(int(layer), Operation(operation)) for layer, operation in np.argwhere(before & ~row.active)]
        layer, operation = gone[-1]  # what keys and values kept alive is in layers before theirs
        names.append(f"{OPERATIONS[operation]} {layer}")
        before = row.active
    return ", ".join(names)


def draw(found: Sequence[Rivals], path: Path) -> None:
    """Test KL over FLOPs of what is best on the validation questions, a panel for each number of tokens."""
    figure = Figure(figsize=(4.8 * len(found), 3.9), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, one in zip(panels, found, strict=True):
        for number, way in enumerate(WAYS):
            costs = sorted({row.flops for row in one.rows[way]})
            rows = list(dict.fromkeys(one.choose(way, cost) for cost in costs))
            style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4, "linewidth": 1.2}
            heights = [float(row.test_first_token.mean()) for row in rows]
            axes.plot([row.flops for row in rows], heights, label=way, **style)
        axes.set(yscale="log", xlabel="LLM prefill FLOPs", title=f"{one.tokens} visual tokens")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test KL, nats")
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=160)
