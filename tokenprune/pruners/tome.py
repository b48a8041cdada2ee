"""ToMe: in each layer of the vision tower, the most alike pairs of patches become their means, behind the attention.

Paper: https://arxiv.org/abs/2210.09461
Code: https://github.com/facebookresearch/ToMe (CC BY-NC 4.0); on towers of MLLMs, as others compare with it,
    https://github.com/ModelTC/LightCompress, llmc/compression/token_reduction (Apache-2.0)
Differs:
    - Exactly the budget is left: what has to go is shared out over the layers, those that divide it unevenly last. The
      code takes a number of merges per layer. Where more than half of the patches have to go in one layer, the means
      are matched again (inferred); the code merges half and no more.
    - Patches enter the LLM in raster order, by the place of the patch that others were merged into. The code hands on
      all unmerged patches of one half, then the other half; that order decides which pairs are looked at in the next
      layer, and is kept for this alone.
    - In a tower without CLS, or with more tokens that no patch makes, halves are those of a tower with CLS.
    - Cosines and means are float32 whatever the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal, TowerHeadMean
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage, tower
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import first_largest, highest
from tokenprune.functional.vectors import take, unit, widen
from tokenprune.pruners.base import register_pruner
from tokenprune.pruners.dense import DensePruner


@register_pruner("tome", paper="https://arxiv.org/abs/2210.09461", idea="merging")
@dataclass(frozen=True, kw_only=True)
class ToMe(DensePruner):
    """Merges the patches whose keys are most alike, a few in each layer of the vision tower.

    Attributes:
        proportional: whether a merged patch counts as all that were merged into it, in later means and, by the
            logarithm of their number, as a key of later layers, as the paper has it for classifiers. If not, it counts
            as one, as in the code for towers of MLLMs.
    """

    proportional: bool = False

    @property
    def requires(self) -> frozenset[Signal]:
        """Keys of the layer, mean over the heads."""
        return frozenset({TowerHeadMean()})

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """Behind the attention of each layer of the tower that the projector sees."""
        return tuple(tower(layer, after="attention") for layer in range(spec.tower_layers))

    def counts(self, spec: ModelSpec, keep: int, total: int) -> tuple[int, ...]:
        """As many go in each layer, and one more in the last ones if they do not divide."""
        layers = spec.tower_layers
        each, over = divmod(total - keep, layers)
        return tuple(total - each * (at + 1) - max(0, at + 1 - layers + over) for at in range(layers))

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        number = tokens.history[0] if tokens.history else tokens.num_tokens
        order, size = _arrived(tokens, number)
        if not self.proportional:
            size = torch.ones_like(size)
        metric = widen(tokens.signal(TowerHeadMean()))
        into = torch.arange(tokens.num_tokens, device=order.device).expand_as(order)
        while order.shape[1] > k:
            order, target = matched(_means(metric, into, size), order, order.shape[1] - k)
            into = target.gather(1, into)
        keep = order.sort(1).values
        stands_for = torch.zeros_like(size).scatter_add(1, into, size).gather(1, keep)
        return TokenSelection(
            keep,
            tokens.num_tokens,
            into=into,
            weight=size.to(metric),
            labels=order.argsort(1) + number * (stands_for - 1),
            bias=stands_for.to(metric).log() if self.proportional else None,
        )


def _arrived(tokens: VisualTokens, number: int) -> tuple[Tensor, Tensor]:
    """The tokens in the order of the halves, and how many patches each stands for, both (B, N) long.

    An earlier stage hands both on in one label: the place in that order, and ``number`` times what was merged.
    """
    place = torch.arange(tokens.num_tokens, device=tokens.features.device)
    if tokens.labels is None or bool((tokens.labels < 0).any()):
        alone = place.repeat(tokens.batch_size, 1)
        return alone, torch.ones_like(alone)
    return (tokens.labels % number).argsort(dim=1, stable=True), tokens.labels // number + 1


def _means(metric: Tensor, into: Tensor, weight: Tensor) -> Tensor:
    """Weighted means (B, N, C) of what (B, N) is merged, at the places of what it is merged into."""
    weight = weight.to(metric)
    sums = torch.zeros_like(metric).scatter_add(1, into[..., None].expand_as(metric), metric * weight[..., None])
    return sums / torch.zeros_like(weight).scatter_add(1, into, weight).clamp(min=1)[..., None]


def matched(metric: Tensor, order: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Merge the tokens of one half that are most like one of the other half.

    Args:
        metric: (B, N, C), whose cosines tell what is alike.
        order: (B, n) long, tokens; the first, third, ... are merged into, the second, fourth, ... may be merged.
        most: how many are merged; not more than a half.

    Returns:
        What is left, (B, n') long: the tokens of the second half that were not merged, then the first half; and the
        token (B, N) long that each is in now.
    """
    first, second = order[:, ::2], order[:, 1::2]
    x = unit(metric)
    cosines = take(x, second) @ take(x, first).mT
    nearest = first_largest(cosines)[..., 0]
    merged = highest(cosines.amax(2), min(most, second.shape[1]))
    left = second[~merged].view(len(second), -1)
    own = torch.arange(metric.shape[1], device=order.device).repeat(len(order), 1)
    target = own.scatter(1, second, torch.where(merged, first.gather(1, nearest), second))
    return torch.cat([left, first], 1), target
