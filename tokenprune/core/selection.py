"""What a pruner decides at one stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenprune.core.errors import SelectionError


@dataclass(frozen=True, eq=False)
class TokenSelection:
    """What a pruner decides at one stage. Unsorted or repeated indices cannot be expressed.

    Attributes:
        keep: (B, K) long, strictly increasing in each row.
        num_tokens: N, visual tokens before; K = N is the identity.
        scores: (B, N), higher stays, of methods that score.
        order: (B, K) long, the same indices in the order in which a greedy method picked them.
        merged: (B, K + M, D) new features of the kept tokens, of methods that merge others into them, followed by
            those of M tokens that the method appends, in their order.

    Raises:
        SelectionError: if ``keep`` is out of range or not strictly increasing, or shapes disagree.
    """

    keep: Tensor
    num_tokens: int
    scores: Tensor | None = None
    order: Tensor | None = None
    merged: Tensor | None = None

    def __post_init__(self) -> None:
        keep = self.keep
        if keep.dim() != 2 or keep.dtype != torch.long or 0 in keep.shape:
            raise SelectionError(f"keep must be a non-empty (B, K) long tensor, got {tuple(keep.shape)} {keep.dtype}")
        increasing = bool((keep[:, 1:] > keep[:, :-1]).all())
        if not increasing or int(keep[:, 0].min()) < 0 or int(keep[:, -1].max()) >= self.num_tokens:
            raise SelectionError(f"keep must be strictly increasing within [0, {self.num_tokens})")
        if self.scores is not None and self.scores.shape != (len(keep), self.num_tokens):
            raise SelectionError(f"scores must be {(len(keep), self.num_tokens)}, got {tuple(self.scores.shape)}")
        if self.order is not None and not torch.equal(self.order.sort(1).values, keep):
            raise SelectionError("order must hold the kept indices")
        if self.merged is not None and (len(self.merged) != len(keep) or self.merged.shape[1] < keep.shape[1]):
            raise SelectionError(
                f"merged must be (B, K or more, D) with (B, K) = {tuple(keep.shape)}, got {tuple(self.merged.shape)}"
            )

    @classmethod
    def from_order(cls, order: Tensor, num_tokens: int, scores: Tensor | None = None) -> TokenSelection:
        """The selection of a greedy method from its picks, (B, K) in the order in which they were made."""
        return cls(order.sort(1).values, num_tokens, scores=scores, order=order)

    def without_features(self) -> TokenSelection:
        """The same choice, without the features that the method made."""
        return self if self.merged is None else replace(self, merged=None)
