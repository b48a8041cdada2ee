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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenprune.conditioning.base import over_heads
from tokenprune.core.errors import ConfigError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Layer, Signal, TowerAttention, TowerHeadMean, TowerValueAttention
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage, tower
from tokenprune.core.steps import Step
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import highest
from tokenprune.functional.vectors import widen
from tokenprune.pruners.base import Pruner, check_choice, register_pruner
from tokenprune.pruners.dense import DensePruner

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


@dataclass(frozen=True, kw_only=True)
class FlowStage(Pruner):
    """One stage of FlowCut.

    Attributes:
        layers: of the vision tower, whose scores are new.
        later: layers between the stage and the last one.
        by_entropy: whether the attention decides how many patches leave; then the stage is told how many the last one
            keeps.
    """

    layers: tuple[int, ...]
    later: int
    by_entropy: bool

    @property
    def requires(self) -> frozenset[Signal]:
        """Signals of the layers."""
        return frozenset(signal for layer in self.layers for signal in signals(layer))

    @property
    def adaptive(self) -> bool:
        """Whether the attention decides how many patches stay."""
        return self.by_entropy and self.later > 0

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        total = handed_on(tokens)
        for layer in self.layers:
            new = score(tokens, layer)
            total = new if total is None else (total + new) / 2
        assert total is not None  # as there is a layer
        kept = highest(total, k)
        if self.adaptive:
            attention = over_heads(tokens, TowerAttention("cls", self.layers[-1]))
            numbers = tokens.num_tokens - leaving(attention, k, self.later)
            kept = torch.stack([highest(row, max(k, int(n))) for row, n in zip(total, numbers, strict=True)])
        selection = TokenSelection.from_mask(kept)
        said = total.float().view(torch.int32).long()  # the bits of a number of at least 0
        labels = said.gather(1, selection.keep.clamp(min=0)).masked_fill(~selection.there, -1)
        return TokenSelection(selection.keep, tokens.num_tokens, labels=labels)


def signals(layer: Layer | None) -> tuple[Signal, Signal, Signal]:
    """What a score is made of in a layer of the tower."""
    return TowerAttention("cls", layer), TowerValueAttention(layer), TowerHeadMean("values", layer)


def cuts(layers: int) -> Iterator[tuple[int, int]]:
    """Layers (0-based) behind which patches leave, and how many layers follow before the last one that is read.

    Args:
        layers: of the tower, up to the last one that the projector reads.

    Raises:
        ConfigError: if that is the first.
    """
    if layers < 2:
        raise ConfigError("flowcut needs a vision tower of which the projector reads the second layer or a later one")
    yield from ((layer, layers - 2 - layer) for layer in range(layers - 1) if (layers - layer) % 2 == 0)


def score(tokens: VisualTokens, layer: Layer | None) -> Tensor:
    """The score (B, N) of each patch in a layer: its shares of both kinds of attention, times the size of its value."""
    attention, by_values, values = signals(layer)
    by_keys, similar = over_heads(tokens, attention), over_heads(tokens, by_values)
    size = widen(tokens.signal(values)).abs().sum(2)
    return (_shares(by_keys) + _shares(similar)) * size


def leaving(attention: Tensor, k: int, later: int) -> Tensor:
    """How many patches (B,) long leave by the entropy of their attention.

    Args:
        attention: (B, N) of CLS, mean over the heads.
        k: patches that the last stage keeps.
        later: layers that follow before it.
    """
    share, number = _shares(attention), attention.shape[1]
    even = torch.special.entr(share).sum(1) / math.log(max(2, number))
    most: float = (number - k) / math.sqrt(later)
    return torch.round(most * (1 - even.square())).long()


def handed_on(tokens: VisualTokens) -> Tensor | None:
    """Scores (B, N) that the stage before has handed on; None if there are none."""
    if tokens.labels is None or bool((tokens.labels < 0).any()):
        return None
    return tokens.labels.to(torch.int32).view(torch.float32)


def _shares(x: Tensor) -> Tensor:
    """Numbers (B, N) divided by their sum over the tokens."""
    return x / x.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
