"""How far one output distribution is from another."""

from __future__ import annotations

from torch import Tensor

from tokenprune.functional.vectors import widen


def kl(unpruned: Tensor, pruned: Tensor, counts: Tensor, *, reverse: bool = False) -> Tensor:
    """KL divergence in nats, mean over the positions of each row.

    Args:
        unpruned: (B, T, vocabulary) logits p.
        pruned: (B, T, vocabulary) logits q.
        counts: (B, T) bool, which positions count; at least one a row.
        reverse: KL(q || p) instead of KL(p || q).

    Returns:
        (B,) at least 0, up to rounding.
    """
    p, q = widen(unpruned).log_softmax(-1), widen(pruned).log_softmax(-1)
    p, q = (q, p) if reverse else (p, q)
    divergence = (p.exp() * (p - q)).sum(-1)
    mean: Tensor = (divergence * counts).sum(1) / counts.sum(1)
    return mean
