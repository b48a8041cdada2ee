"""Remove operations one by one, each time that which costs least divergence for the FLOPs that it saves.

Paper: Beyond Token Pruning: Operation Pruning in Vision-Language Models, https://arxiv.org/abs/2507.02909v1 (GSOP).

Differs: its body was not available, and nothing of its repository is used. Known is that it sorts operations greedily.
The criterion is inferred: the rise of divergence over the saving. Ours leaves out dead work at once, and knows one
group of visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tokenprune.core.plan import Operation

Rule = Literal["free", "depth_wise"]
Active = NDArray[np.bool_]  # (layers, 3) over Operation, what runs for the visual tokens


@dataclass(frozen=True, eq=False)
class Step:
    """One removal.

    Attributes:
        layer, operation: what was removed, work that is dead without it aside.
        active: what is left.
        divergence: measured, nats.
        cost: of what is left.
    """

    layer: int
    operation: Operation
    active: Active
    divergence: float
    cost: float


def without_dead_work(active: Active) -> Active:
    """Leaves out what changes nothing: updates of tokens whose keys and values no later layer takes."""
    left = active.copy()
    sources = np.flatnonzero(active[:, Operation.ATTENTION_SOURCE])
    last = int(sources[-1]) if len(sources) else 0
    left[last:, [Operation.ATTENTION_RECEIVER, Operation.MLP]] = False
    return left


def removable(active: Active, rule: Rule) -> list[tuple[int, Operation]]:
    """What may go next; the keys and values of layer 0 never do.

    Args:
        active: what runs.
        rule: any operation, or of each kind the deepest one alone.
    """
    found = []
    for operation in Operation:
        layers = [int(x) for x in np.flatnonzero(active[:, operation]) if x or operation != Operation.ATTENTION_SOURCE]
        found += [(layer, operation) for layer in (layers if rule == "free" else layers[-1:])]
    return found


def remove(
    active: Active,
    measure: Callable[[Active], float],
    cost: Callable[[Active], float],
    rule: Rule = "free",
) -> Iterator[Step]:
    """Remove one operation after the other until none can go.

    Args:
        active: what runs at the start; a path that was stopped goes on from the last step's.
        measure: divergence of a plan, nats.
        cost: of a plan.
        rule: see ``removable``.
    """
    active = without_dead_work(active)
    now, spent = measure(active), cost(active)
    while options := removable(active, rule):
        steps = []
        for layer, operation in options:
            left = active.copy()
            left[layer, operation] = False
            left = without_dead_work(left)
            steps.append(Step(layer, operation, left, measure(left), cost(left)))
        best = min(steps, key=lambda step: (step.divergence - now) / (spent - step.cost))
        yield best
        active, now, spent = best.active, best.divergence, best.cost
