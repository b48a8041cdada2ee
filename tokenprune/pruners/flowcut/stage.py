"""A stage of FlowCut, and what it hands on to the next one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.conditioning.base import over_heads
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal, TowerAttention
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import highest
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.flowcut.score import leaving, score, signals


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


def handed_on(tokens: VisualTokens) -> Tensor | None:
    """Scores (B, N) that the stage before has handed on; None if there are none."""
    if tokens.labels is None or bool((tokens.labels < 0).any()):
        return None
    return tokens.labels.to(torch.int32).view(torch.float32)
