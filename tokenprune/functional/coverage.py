"""Greedy coverage: tokens that together cover as much as possible, each thing being covered by the best of them."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.core.precision import exact
from tokenprune.functional.ranking import first_largest


@torch.no_grad()
def max_coverage(
    cover: Tensor, k: int, allowed: Tensor | None = None, factor: Tensor | None = None, bonus: Tensor | None = None
) -> Tensor:
    """The set that greedily maximises sum_i max(0, max over its members j of cover_ij).

    The gain of a token is sum_i max(0, cover_ij - best_i), where best_i is 0 or the largest cover by what was picked.
    The picks for a smaller k are the first ones of those for a larger k.

    Args:
        cover: (B, M, N), how well each of N tokens covers each of M things; what is below 0 never counts.
        k: size of the set, tokens; at most what is allowed in any row.
        allowed: (B, N) bool, False for what may not be picked; all if None.
        factor: (B, N) at least 0, of the gain of each token; 1 if None.
        bonus: (B, N) added to the gain of each token; 0 if None.

    Returns:
        (B, k) distinct token indices in the order of the picks; the lowest of equally good ones. Time is O(k M N) a
        row, memory that of ``cover`` twice.
    """
    with exact(cover.device):
        free = cover.new_ones(cover.shape[0], cover.shape[2], dtype=torch.bool) if allowed is None else allowed
        best, order = cover.new_zeros(*cover.shape[:2], 1), []
        for _ in range(k):
            gain = (cover - best).clamp_(min=0).sum(1)
            gain = gain if factor is None else gain * factor
            gain = gain if bonus is None else gain + bonus
            pick = first_largest(gain.masked_fill(~free, -torch.inf))
            best = best.maximum(cover.gather(2, pick[:, None].expand(-1, cover.shape[1], -1)))
            free = free.scatter(1, pick, False)
            order.append(pick)
        return torch.cat(order, 1)
