"""The solver: from curves to the policies of least predicted divergence within a budget.

Paper: Fine-grained Token Allocation Via Operation Pruning for Efficient MLLMs, https://arxiv.org/abs/2507.02909.

Differs: the paper adds up the divergences of its parameters varied alone; how it then minimises is not known. Ours
looks at every policy without dead work. The sum cannot know that a policy of mlp = attention - 1 leaves out no MLP that
matters: it charges the MLP's curve there all the same, so the best few are worth measuring jointly. Those that differ
by one visual token are next to the same when measured, so each combination of depths gets one, its best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.core.errors import BudgetError, ConfigError
from tokenprune.pruners.dop.cost import Cost
from tokenprune.pruners.dop.curves import Curves
from tokenprune.pruners.dop.depths import Depths

ROUNDING = 1e-12  # relative; two orders of adding up a cost may differ by less


@dataclass(frozen=True)
class Candidate:
    """A candidate: the depths of a policy, its divergence and its cost.

    Attributes:
        depths: of the policy, normalised.
        predicted: divergence that the curves add up to, nats.
        cost: in the unit of the budget.
        measured: divergence of the policy itself, nats, or None if it was not measured.

    Raises:
        ConfigError: if one of them is not finite.
    """

    depths: Depths
    predicted: float
    cost: float
    measured: float | None = None

    def __post_init__(self) -> None:
        for name in ("predicted", "cost", "measured"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{name} must be a finite number, got {value}")


def solve(curves: Curves, cost: Cost, budgets: Sequence[float], *, top: int = 5) -> list[list[Candidate]]:
    """The best policies for each budget, none of them measured jointly.

    Args:
        curves: of one model.
        cost: of a model with as many layers.
        budgets: most that a policy may cost, in the unit of ``cost``.
        top: how many policies a budget gets, if it allows so many; no two of them have the same depths.

    Returns:
        A list for each budget, by rising predicted divergence, of equal ones the cheaper first. Each has the number of
        visual tokens that is best for its depths within the budget, the fewest of equally good ones.

    Raises:
        BudgetError: if a budget is not a positive number or no policy meets it, or ``top`` is below 1.
    """
    if top < 1:
        raise BudgetError(f"top must be at least 1, got {top}")
    for budget in budgets:
        if not (math.isfinite(budget) and budget > 0):
            raise BudgetError(f"a budget must be a positive number of {cost.kind}, got {budget!r}")
    shapes, sizes = _shapes(curves), range(1, curves.visual_tokens + 1)
    divergence = _divergence(curves, shapes, sizes)
    costs = cost.table(_active(curves, shapes), sizes)
    found = []
    for budget in budgets:
        at = _best(divergence, costs, budget, top, cost.kind)
        depths = [replace(shapes[shape], keep=sizes[size]) for shape, size in zip(*at, strict=True)]
        numbers = zip(depths, divergence[at].tolist(), costs[at].tolist(), strict=True)
        found.append([Candidate(one, predicted, float(price)) for one, predicted, price in numbers])
    return found


def _shapes(curves: Curves) -> list[Depths]:
    """All depths without dead work; how many tokens are kept is left open."""
    shapes = []
    for attention in range(curves.attention.full + 1):
        last = curves.layers - 1 if curves.update_only else max(attention - 1, 0)
        queries = [None] if curves.update_only else range(last + 1) if curves.query else [last]
        shapes += [
            Depths(attention=attention, mlp=mlp, query=query, keep=1, update_only=curves.update_only)
            for query in queries
            for mlp in range(last + 1)
        ]
    return shapes


def _active(curves: Curves, shapes: Sequence[Depths]) -> NDArray[np.bool_]:
    """(P, layers, 3) whether a layer does an operation on the visual tokens that enter the LLM."""
    ends = np.array([[shape.sources(curves.layers), shape.receivers, shape.mlp] for shape in shapes])
    return np.arange(curves.layers)[:, None] < ends[:, None, :]


def _divergence(curves: Curves, shapes: Sequence[Depths], sizes: Sequence[int]) -> NDArray[np.float64]:
    """(P, K) predicted; infinite where nothing was measured, or where another policy does the same."""
    total = curves.attention.values[[shape.attention for shape in shapes]]
    total = total + curves.mlp.values[[shape.mlp for shape in shapes]]
    if curves.query:
        total = total + curves.query.values[[shape.receivers for shape in shapes]]
    table: NDArray[np.float64] = total[:, None] + curves.tokens.values[sizes]
    unread = [at for at, shape in enumerate(shapes) if not shape.sources(curves.layers)]
    table[unread, :-1] = np.inf  # tokens that nobody reads: it does not matter how many
    return table


def _best(
    divergence: NDArray[np.float64], costs: NDArray[Any], budget: float, top: int, kind: str
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(<= top,) indices of depths, no two the same, and of the number of tokens that is best for each."""
    allowed = np.where(costs <= budget * (1 + ROUNDING), divergence, np.inf)
    size = allowed.argmin(1)  # the first of equal ones: the fewest tokens
    shape = np.flatnonzero(np.isfinite(allowed.min(1)))
    if not len(shape):
        least = costs[np.isfinite(divergence)].min()
        raise BudgetError(f"no policy within the curves costs {budget:g} {kind} or less; the least is {least:g}")
    size = size[shape]
    order = np.lexsort((costs[shape, size], divergence[shape, size]))[:top]
    return shape[order], size[order]
