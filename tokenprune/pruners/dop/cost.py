"""What a plan costs: a sum, or a mean, over the layers of what one layer costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tokenprune.core.plan import Operation, OperationPlan
from tokenprune.core.sizes import ModelSpec
from tokenprune.pruners.dop.latency import LatencyModel

CostKind = Literal["flops", "average_tokens", "milliseconds"]
EACH = torch.eye(len(Operation), dtype=torch.bool)[None]  # one layer with a group of its own for each operation


@dataclass(frozen=True)
class Cost:
    """A cost that adds up over the layers.

    Attributes:
        kind: unit, and the key of a budget.
        layer: cost of one layer in which so many visual tokens give keys and values, ask and receive, and pass the MLP.
        mean: whether the cost of a plan is the mean over its layers, instead of the sum.
    """

    kind: CostKind
    layer: Callable[[int, int, int], float]
    mean: bool = False

    def of(self, plan: OperationPlan) -> float:
        """Cost of a plan, in the unit of ``kind``."""
        layers = len(plan.active)
        total = sum(self.layer(*(plan.tokens(layer, operation) for operation in Operation)) for layer in range(layers))
        return total / layers if self.mean else total

    def table(self, active: NDArray[np.bool_], keep: Sequence[int]) -> NDArray[Any]:
        """Costs of many plans of one group of visual tokens.

        A layer does one of eight things with the group, so a plan is how often each occurs.

        Args:
            active: (P, layers, 3) over ``Operation``.
            keep: (K,) sizes that the group may have.

        Returns:
            (P, K) in the unit of ``kind``; exact if a layer's cost is an integer and ``mean`` is not set.
        """
        kinds = active @ np.array([4, 2, 1])
        present = np.unique(kinds)
        counts = (kinds[:, :, None] == present).sum(1)
        switches = [[bool(kind & bit) for bit in (4, 2, 1)] for kind in present.tolist()]
        once = np.array([[self.layer(*(size * on for on in switch)) for size in keep] for switch in switches])
        total: NDArray[Any] = counts @ once
        return total / active.shape[1] if self.mean else total


def flops(spec: ModelSpec, text_tokens: int) -> Cost:
    """FLOPs of the decoder layers in prefill, as ``OperationPlan.prefill_flops`` has them.

    Args:
        spec: of the model.
        text_tokens: all other tokens of the prompt.
    """
    llm = replace(spec.llm, layers=1)

    def layer(sources: int, receivers: int, mlp: int) -> int:
        return OperationPlan(EACH, (sources, receivers, mlp)).prefill_flops(llm, text_tokens)

    return Cost("flops", layer)


def average_tokens() -> Cost:
    """Visual tokens that give keys and values, mean over the layers, as ``OperationPlan.mean_tokens`` has it."""
    return Cost("average_tokens", lambda sources, receivers, mlp: sources, mean=True)


def milliseconds(model: LatencyModel, text_tokens: int) -> Cost:
    """Milliseconds of the decoder layers in prefill.

    Args:
        model: fitted to timings of the machine and the batch size in question.
        text_tokens: all other tokens of the prompt.
    """

    def layer(sources: int, receivers: int, mlp: int) -> float:
        attention = model.attention_milliseconds(text_tokens + sources, text_tokens + receivers)
        return attention + model.mlp_milliseconds(text_tokens + mlp)

    return Cost("milliseconds", layer)
