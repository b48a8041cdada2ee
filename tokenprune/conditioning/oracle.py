"""The truth instead of relevance: the ceiling of any conditioning, and no method."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenprune.conditioning.base import CONDITIONINGS, Conditioning, Scope
from tokenprune.core.errors import SelectionError
from tokenprune.core.signals import Evidence, Signal
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import widen


@CONDITIONINGS.register("oracle")
@dataclass(frozen=True)
class Oracle(Conditioning):
    """1 where a token shows what is asked about, else 0, as the task knows it; a ceiling, no method."""

    @property
    def requires(self) -> frozenset[Signal]:
        return frozenset({Evidence()})

    def _relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        value = tokens.signal(Evidence())
        if value.shape != tokens.features.shape[:2]:
            wanted = f"(B, {tokens.num_tokens})"
            raise SelectionError(f"signal 'evidence' must be {wanted}, got {tuple(value.shape)}")
        return widen(value)
