"""FlowCut, its vision stage: patches leave the vision tower behind every second layer, by scores that are handed on.

Paper: https://arxiv.org/abs/2505.19536
Code: https://github.com/TungChintao/FlowCut (Apache-2.0)
Differs:
    - How many patches leave at a stage is fixed by the budget: the code's formula with ``share`` in place of what it
      reads off the attention, 1 - h^2. ``cut="entropy"`` reads it off as the code does, which takes the most of a batch
      for all its pictures; as rows never influence one another here, pictures of a batch that would keep unequal
      numbers are refused.
    - As in the code, h is squared; the paper has it without the square.
    - The stages inside the LLM (LLaVA-NeXT, Qwen2-VL) are no part of it.
    - Scores are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tokenprune.core.errors import ConfigError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage, tower
from tokenprune.core.steps import Step
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import highest
from tokenprune.pruners.base import check_choice, register_pruner
from tokenprune.pruners.dense import DensePruner
from tokenprune.pruners.flowcut.score import cuts, score, signals
from tokenprune.pruners.flowcut.stage import FlowStage

Cut = Literal["fixed", "entropy"]


@register_pruner("flowcut", paper="https://arxiv.org/abs/2505.19536", idea="attention")
@dataclass(frozen=True, kw_only=True)
class FlowCut(DensePruner):
    """Keeps what CLS attends to by keys and by values, of large values, behind every second layer of the vision tower.

    Attributes:
        cut: how many patches leave at a stage: ``fixed``, or ``entropy``: the more, the more uneven the attention is.
        share: in (0, 1], with ``fixed``, of what would leave at once if it were as uneven as can be.
    """

    cut: Cut = "fixed"
    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("cut", self.cut, get_args(Cut))
        if not 0 < self.share <= 1:
            raise ConfigError(f"option 'share' is {self.share!r}; it must be a number in (0, 1]")

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention of CLS by keys and by values, and mean values, of the layer before a stage."""
        return frozenset(signals(None))

    @property
    def adaptive(self) -> bool:
        """Whether the attention decides how many patches stay at the stages before the last."""
        return self.cut == "entropy"

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """Behind every second layer of the tower; all that has to go is gone before the last one that is read."""
        return tuple(tower(layer + 1) for layer, _ in cuts(spec.tower_layers))

    def counts(self, spec: ModelSpec, keep: int, total: int) -> tuple[int, ...]:
        """How many patches each stage leaves; with ``entropy`` each is told how many the last one does."""
        left, found = total, list[int]()
        for _, later in cuts(spec.tower_layers):
            left = keep if self.adaptive or not later else left - round((left - keep) / math.sqrt(later) * self.share)
            found.append(left)
        return tuple(found)

    def alive(self, spec: ModelSpec, counts: Sequence[int], total: int) -> tuple[int, ...]:
        """Patches behind each stage; with ``entropy`` the most there can be."""
        return (*[total] * (len(counts) - 1), counts[-1]) if self.adaptive else tuple(counts)

    def steps(self, spec: ModelSpec) -> tuple[Step, ...]:
        """Each stage reads the layers that have run since the one before."""
        found, first = [], 0
        for step, (layer, later) in zip(super().steps(spec), cuts(spec.tower_layers), strict=True):
            selector = FlowStage(layers=tuple(range(first, layer + 1)), later=later, by_entropy=self.adaptive)
            found.append(Step(step.stage, selector, step.positions))
            first = layer + 1
        return tuple(found)

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        return TokenSelection.from_mask(highest(score(tokens, None), k))
