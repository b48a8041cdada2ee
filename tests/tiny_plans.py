"""Plans of operations for the tiny models, and a pruner that runs a given one."""

import dataclasses

import torch
from tiny import Project

from tokenprune.core.plan import Operation, Operations

LAYERS = 4  # of the tiny models


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned(Project):
    """Keeps what ``Project`` keeps, and runs a given plan for it."""

    given: Operations = None
    positions: str = "original"

    def operations(self, spec):
        return self.given


def random_plan(seed, groups=1):
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(LAYERS, 3, groups, generator=generator) < 0.6
    active[0, Operation.ATTENTION_SOURCE] = True
    return Operations(active, (1 / groups,) * groups)


def depthwise(sources, receivers, mlp):
    active = torch.zeros(LAYERS, 3, 1, dtype=torch.bool)
    for operation, depth in enumerate((sources, receivers, mlp)):
        active[:depth, operation] = True
    return Operations(active)
