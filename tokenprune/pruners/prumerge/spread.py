"""Which tokens PruMerge+ keeps: half by attention, and half spread over the image."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.functional.ranking import descending


def even(tokens: int, number: int) -> Tensor:
    """The middles (number,) long of equal stretches of so many tokens."""
    return (2 * torch.arange(number) + 1) * tokens // max(1, 2 * number)


def spread(attention: Tensor, number: int) -> Tensor:
    """The best tokens and those at even steps, (B, number) long; some may be both, and come twice.

    Args:
        attention: (B, N).
        number: of tokens, of which the smaller half are at even steps.
    """
    steps = even(attention.shape[1], number // 2).to(attention.device)
    best = descending(attention)[:, : number - len(steps)]
    return torch.cat([best, steps.expand(len(best), -1)], 1)


def spread_once(attention: Tensor, number: int) -> Tensor:
    """Tokens at even steps and the best of the others, (B, number) long, those by falling attention first.

    Args:
        attention: (B, N).
        number: of distinct tokens, of which the smaller half are at even steps.
    """
    n, index = attention.shape[1], torch.arange(attention.shape[1], device=attention.device)
    at_step = torch.zeros(n, dtype=torch.bool, device=index.device)
    at_step[even(n, number // 2).to(index.device)] = True
    order = descending(attention)
    others = (~at_step[order]).cumsum(1)
    most = number - number // 2
    early = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, others <= most)
    rank = torch.zeros_like(order).scatter(1, order, index.expand_as(order))
    key = torch.where(early, rank, torch.where(at_step, n + index, 2 * n))
    return key.argsort(dim=1, stable=True)[:, :number]


def spread_by_ratio(best: Tensor, tokens: int) -> Tensor:
    """The best tokens (1, m), and as the code has it, about three times as many at whole steps that are not among them.

    Args:
        best: long.
        tokens: in all.
    """
    step = max(1, int(tokens / best.shape[1]) // 3)
    steps = torch.arange(0, tokens - 1, step, device=best.device)
    return torch.cat([best, steps[~torch.isin(steps, best)][None]], 1)
