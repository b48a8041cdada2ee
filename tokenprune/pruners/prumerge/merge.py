"""What becomes of kept tokens and of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.functional.ranking import first_largest, leading
from tokenprune.functional.vectors import inverse_norm, take, widen


def joined_attention(attention: Tensor) -> Tensor:
    """The attention (B, N) of all heads joined to one, to patches, from that of each, (B, H, N).

    With scores s_h of H heads of width d, that is softmax(sum_h s_h / sqrt(H d)), and a head's log-probability is
    s_h / sqrt(d) but for a constant. What a head does not pay to patches it pays to CLS.
    """
    heads, smallest = attention.shape[1], torch.finfo(torch.float64).tiny
    to_patches = attention.double()
    to_all = torch.cat([to_patches, 1 - to_patches.sum(2, keepdim=True)], 2).clamp(min=smallest)
    joined: Tensor = (to_all.log().sum(1) / heads**0.5).softmax(1)[:, :-1]
    return joined.to(widen(attention).dtype)


def merged(features: Tensor, keys: Tensor, attention: Tensor, picks: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """The tokens that go on: each pick with its neighbours, and a sum of all that leaves.

    Args:
        features: (B, N, D).
        keys: (B, N, C), whose cosines tell neighbours.
        attention: (B, N), weights of what is added.
        picks: (B, n) long; what is picked again comes again, and replaces the first token that is not picked.
        neighbours: how many are added to each; they may be picks themselves.

    Returns:
        Features (B, n + 1, D), the sum last, and whose places in the image they have, (B, n + 1) long. The sum has that
        of the first token in it.
    """
    places, rest = places_of(picks, features.shape[1])
    if not torch.equal(places, picks):
        source = torch.arange(features.shape[1], device=picks.device).repeat(len(picks), 1).scatter(1, places, picks)
        features, keys, attention = take(features, source), take(keys, source), attention.gather(1, source)
    attention = attention.to(features)
    number, last = min(neighbours, features.shape[1] - 1), first_largest(rest.long())
    rows = zip(features, keys, attention, places, (attention * rest)[:, None], strict=True)
    made = [
        torch.cat([x[place] + weighted_sums(x, weight, nearest(key, place, number)), left @ x])
        for x, key, weight, place, left in rows  # all at once, pages of new memory take longer than the products
    ]
    return torch.stack(made), torch.cat([places, last], 1)


@torch.no_grad()
def nearest(keys: Tensor, places: Tensor, number: int) -> Tensor:
    """Tokens (n, number) whose keys (N, C) are most similar to those at places (n,), which are none themselves."""
    likeness = (keys[places] @ keys.T).mul_(inverse_norm(keys))  # a place's own length changes nothing
    return leading(likeness.scatter_(1, places[:, None], -torch.inf), number, ordered=False)


def weighted_sums(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Sums (n, D) of vectors (N, D), those at an index (n, M), with weights (N,); nothing is copied."""
    if not index.numel():
        return x.new_zeros(len(index), x.shape[1])
    return torch.nn.functional.embedding_bag(index, x, per_sample_weights=weight[index], mode="sum")


def places_of(picks: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Places (B, n) long of picks in the image, all distinct, and which places (B, N) bool have none.

    Args:
        picks: (B, n) long. What is picked again has the first place that is left.
        tokens: N.
    """
    again = (picks[:, :, None] == picks[:, None]).tril(-1).any(2)
    left = torch.ones(len(picks), tokens, dtype=torch.bool, device=picks.device).scatter(1, picks, False)
    free = left.logical_not().long().argsort(dim=1, stable=True)
    places = torch.where(again, free.gather(1, (again.cumsum(1) - 1).clamp(min=0)), picks)
    return places, left.scatter(1, places, False)
