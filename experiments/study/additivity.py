"""Is the sum of the curves a good guide? The estimate of a fit against the divergence that each policy really has.

The curves are read off the grid itself, at all values that it has: nothing is interpolated, so what is seen is the
error of adding up alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from study import agreement
from study.grid import Grid
from study.results import Row
from study.tables import chance, markdown, millions, nats, percent
from tokenprune.pruners.dop.curves import Curves
from tokenprune.report.significance import holm, mcnemar

TOP = 5  # policies that the joint check looks at
FLOOR = 1e-5  # nats; smaller ones are drawn there
BEST = "joint optimum"


@dataclass(frozen=True)
class Choice:
    """What one way of choosing leads to under a budget.

    Attributes:
        budget: visual tokens that the budget stands for.
        way: of choosing.
        row: the policy.
    """

    budget: int
    way: str
    row: Row


def curves(grid: Grid) -> Curves:
    """Each parameter varied alone, as a fit measures it."""
    layers, total = grid.header.layers, grid.header.visual_tokens
    full = grid.at(layers, layers - 1, total).divergence
    attention = {a: grid.at(a, a - 1, total).divergence for a in range(1, layers)}
    mlp = {m: grid.at(layers, m, total).divergence for m in range(layers - 1)}
    tokens = {n: grid.at(layers, layers - 1, n).divergence for n in sorted(set(grid.sizes[:, 2].tolist()) - {total})}
    assert abs(full) < FLOOR, full
    return Curves.of(layers, total, attention=attention, mlp=mlp, tokens=tokens)


def estimates(grid: Grid) -> dict[str, NDArray[np.float64]]:
    """(P,) by name; the second does not charge for the MLP of layers whose MLP is dead without attention."""
    curve = curves(grid)
    attention, mlp, tokens = grid.sizes.T
    total = curve.attention.values[attention] + curve.mlp.values[mlp] + curve.tokens.values[tokens]
    return {"sum": total, "sum, dead MLP free": total - curve.mlp.values[attention - 1]}


def choices(grid: Grid) -> list[Choice]:
    """Of each way under each budget."""
    found, estimate = [], estimates(grid)
    layers = grid.header.layers
    alone = np.where((grid.sizes[:, :2] == (layers, layers - 1)).all(1), -grid.sizes[:, 2], 0.0)
    for name, budget in grid.header.budgets.items():
        first = _best_of_shapes(grid, estimate["sum"], budget)[:TOP]
        ways = {
            f"{grid.base} alone": grid.choose(alone, budget),
            **{way: grid.choose(values, budget) for way, values in estimate.items()},
            f"sum, best of {TOP} measured": min(first, key=lambda at: grid.divergence[at]),
            BEST: grid.choose(grid.divergence, budget),
        }
        found += [Choice(name, way, grid.rows[at]) for way, at in ways.items()]
    return found


def _best_of_shapes(grid: Grid, estimate: NDArray[np.float64], budget: float) -> list[int]:
    """Indices by rising estimate, one for each pair of depths, as the solver of a fit lists them."""
    allowed = np.flatnonzero(agreement.affordable(grid.flops, budget))
    order = allowed[np.lexsort((grid.flops[allowed], estimate[allowed]))]
    first: dict[tuple[int, ...], int] = {}
    for at in order.tolist():
        first.setdefault(tuple(grid.sizes[at, :2].tolist()), at)
    return list(first.values())


def section(grid: Grid, folder: Path) -> list[str]:
    """Paragraphs of the report; the scatter plot is written beside it."""
    draw(grid, folder / "additivity.png")
    header = ["estimate", "Spearman, all", "95 %", "Kendall, all", *(f"edge of {n}" for n in grid.header.budgets)]
    return [
        "## The sum against the joint divergence",
        f"Rank correlation with the joint KL of {len(grid.rows)} policies over {grid.base}, validation questions; "
        "`edge`: Spearman among the policies that use a budget up.",
        markdown(header, _ranks(grid)),
        "Chosen under each budget; KL in nats, accuracy in %; regret against the joint optimum; p: exact McNemar test "
        "against the joint optimum, Holm-corrected over the table.",
        markdown(
            ["budget", "chosen by", "policy", "FLOPs", "KL", "test KL", "KL regret", "accuracy", "lost, points", "p"],
            _table(grid),
        ),
        "![sum against joint divergence](additivity.png)",
    ]


def _ranks(grid: Grid) -> list[list[str]]:
    rows, edges = [], [grid.edge(budget) for budget in grid.header.budgets.values()]
    true = np.stack([row.first_token for row in grid.rows])
    by_question = _sums_by_question(grid, true)
    for name, values in estimates(grid).items():
        low, high = agreement.spearman_interval(by_question[name], true)
        whole = [f"{agreement.spearman(values, grid.divergence):.3f}", f"{low:.3f} to {high:.3f}"]
        near = [_near(values[edge], grid.divergence[edge]) for edge in edges]
        rows.append([name, *whole, f"{agreement.kendall(values, grid.divergence):.3f}", *near])
    return rows


def _near(estimate: NDArray[np.float64], truth: NDArray[np.float64]) -> str:
    """Spearman's coefficient of a few policies; one alone has none."""
    return f"{agreement.spearman(estimate, truth):.2f}" if len(np.unique(estimate)) > 1 < len(np.unique(truth)) else "-"


def _sums_by_question(grid: Grid, true: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """(P, S) the estimates before the curves are made monotone, for the bootstrap."""
    layers, total = grid.header.layers, grid.header.visual_tokens
    place = {tuple(size): at for at, size in enumerate(grid.sizes.tolist())}
    parts = [
        [true[place[a, a - 1, total]], true[place[layers, m, total]], true[place[layers, layers - 1, n]]]
        for a, m, n in grid.sizes.tolist()
    ]
    whole = np.stack([sum(part) for part in parts])
    dead = np.stack([true[place[layers, a - 1, total]] for a in grid.sizes[:, 0].tolist()])
    return {"sum": whole, "sum, dead MLP free": whole - dead}


def _table(grid: Grid) -> list[list[str]]:
    found = choices(grid)
    best = {choice.budget: choice.row for choice in found if choice.way == BEST}
    p = [_p(choice.row, best[choice.budget]) for choice in found]
    corrected = iter(holm([value for value, choice in zip(p, found, strict=True) if choice.way != BEST]))
    rows = []
    for name, budget in grid.header.budgets.items():
        edge = grid.edge(budget)
        means = [grid.divergence[edge].mean(), grid.test_divergence[edge].mean(), grid.accuracy[edge].mean()]
        policy = [str(name), "chance", f"mean of {edge.sum()}", millions(grid.flops[edge].mean())]
        rows.append([*policy, *_numbers(means[0], means[1], means[2], best[name]), "-"])
        for choice in (one for one in found if one.budget == name):
            row, tested = choice.row, "-" if choice.way == BEST else chance(next(corrected))
            numbers = _numbers(row.divergence, float(row.test_first_token.mean()), row.accuracy, best[name])
            rows.append([str(name), choice.way, row.name, millions(row.flops), *numbers, tested])
    return rows


def _numbers(divergence: float, test: float, accuracy: float, best: Row) -> list[str]:
    lost = [nats(divergence - best.divergence), percent(accuracy), percent(best.accuracy - accuracy)]
    return [nats(divergence), nats(test), *lost]


def _p(row: Row, best: Row) -> float:
    return mcnemar(int((row.right & ~best.right).sum()), int((best.right & ~row.right).sum()))


def draw(grid: Grid, path: Path) -> None:
    """Scatter of the sum over the joint divergence, coloured by the number of visual tokens."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    true = np.maximum(grid.divergence, FLOOR)
    for axes, (name, values) in zip(panels, estimates(grid).items(), strict=True):
        drawn = axes.scatter(np.maximum(values, FLOOR), true, c=grid.sizes[:, 2], cmap="viridis", s=18, alpha=0.9)
        axes.plot([FLOOR, true.max()], [FLOOR, true.max()], color="0.6", linewidth=1, zorder=0)
        axes.set(xscale="log", yscale="log", xlabel=f"{name} of the curves, nats", title=name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("joint KL, nats")
    figure.colorbar(drawn, ax=panels, label="visual tokens")
    figure.savefig(path, dpi=160)
