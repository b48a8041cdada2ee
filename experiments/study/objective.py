"""Does divergence rank policies as the task does? And how many validation questions does that take?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from study import agreement
from study.grid import Grid
from study.tables import markdown, percent, spread
from tokenprune.report.plots import COLOURS, MARKERS

SIZES, DRAWS = (10, 25, 50, 100), 200  # validation questions; how often so many are drawn


@dataclass(frozen=True)
class Ranking:
    """An objective on some number of validation questions, mean and standard deviation over the draws.

    Attributes:
        objective: its name.
        questions: how many were drawn.
        rank: Spearman's coefficient with the share of wrong answers on the test questions, all policies.
        edge: the same among the policies that use a budget up, mean over the budgets.
        lost: accuracy of the best policy for the test questions, less that of the chosen one, mean over the budgets.
    """

    objective: str
    questions: int
    rank: tuple[float, float]
    edge: tuple[float, float]
    lost: tuple[float, float]


def objectives(grid: Grid) -> dict[str, NDArray[np.float64]]:
    """(P, S) on the validation questions, by name; less is better."""
    return {
        "KL, first token": np.stack([row.first_token for row in grid.rows]),
        "KL, teacher-forced": np.stack([row.teacher_forced for row in grid.rows]),
        "answers that change": np.stack([1.0 - row.same for row in grid.rows]),
    }


def rankings(grid: Grid) -> list[Ranking]:
    """Of each objective at each number of questions, and on all of them."""
    budgets = list(grid.header.budgets.values())
    edges, wrong, found = [grid.edge(budget) for budget in budgets], 1 - grid.accuracy, []
    for name, values in objectives(grid).items():
        total = values.shape[1]
        for number in [size for size in SIZES if size < total] + [total]:
            means = agreement.subset_means(values, number, DRAWS if number < total else 1)
            rank = [_rank(draw, wrong) for draw in means]
            edge = [fmean(_rank(draw[e], wrong[e]) for e in edges) for draw in means]
            lost = [fmean(agreement.regret(draw, wrong, grid.flops, b) for b in budgets) for draw in means]
            found.append(Ranking(name, number, _spread(rank), _spread(edge), _spread(lost)))
    return found


def section(grid: Grid, folder: Path) -> list[str]:
    """Paragraphs of the report; the plot is written beside it."""
    found, wrong = rankings(grid), 1 - grid.accuracy
    draw(found, folder / "objective.png")
    budgets = grid.header.budgets.values()
    best = [wrong[agreement.affordable(grid.flops, budget)].min() for budget in budgets]
    chance = np.mean([wrong[grid.edge(budget)].mean() - least for budget, least in zip(budgets, best, strict=True)])
    rows = [
        [one.objective, str(one.questions), spread(*one.rank, 3), spread(*one.edge, 2), _points(*one.lost)]
        for one in found
    ]
    return [
        "## Divergence against accuracy",
        f"How an objective on n validation questions ranks {len(grid.rows)} policies over {grid.base} by their "
        f"accuracy on {len(grid.header.test)} test questions; mean and standard deviation over {DRAWS} draws of the "
        "validation questions. `edge`: among the policies that use a budget up, mean over the budgets. `lost`: points "
        "of test accuracy against the policy that is best for the test questions themselves, mean over the budgets. "
        "`answers that change`: the share of greedy answers that are no longer the unpruned model's.",
        markdown(
            ["objective", "n", "Spearman, all", "Spearman, edge", "lost, points"],
            [*rows, ["chance", "0", "0", "0", percent(float(chance))]],
        ),
        "![rank and loss over the number of questions](objective.png)",
    ]


def draw(found: list[Ranking], path: Path) -> None:
    """Rank correlation, and points lost, over the number of validation questions."""
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    panels = figure.subplots(1, 2)
    for number, name in enumerate(dict.fromkeys(one.objective for one in found)):
        lines = [one for one in found if one.objective == name]
        sizes = [one.questions * 1.04**number for one in lines]  # so that error bars stand side by side
        style = {"color": COLOURS[number], "marker": MARKERS[number], "capsize": 2, "markersize": 5, "label": name}
        panels[0].errorbar(sizes, [one.edge[0] for one in lines], [one.edge[1] for one in lines], **style)
        means, errors = ([100 * one.lost[part] for one in lines] for part in (0, 1))
        panels[1].errorbar(sizes, means, errors, **style)
    for axes, label in zip(panels, ("Spearman at the edge of the budgets", "points of accuracy lost"), strict=True):
        axes.set(xscale="log", xlabel="validation questions", ylabel=label)
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=160)


def _rank(estimate: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Spearman's coefficient; 0 where an objective cannot tell the policies apart."""
    return agreement.spearman(estimate, truth) if len(np.unique(estimate)) > 1 < len(np.unique(truth)) else 0.0


def _spread(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values))


def _points(mean: float, deviation: float) -> str:
    return spread(100 * mean, 100 * deviation, 1)
