"""VisionZip: what the vision tower's CLS token attends to, and a few tokens into which the others are merged.

Paper: https://arxiv.org/abs/2412.04467
Code: https://github.com/dvlab-research/VisionZip (Apache-2.0)
Differs:
    - The budget is all tokens, CLS and contextual ones included. Of these ``contextual_ratio`` are contextual: 5/32
      gives all published pairs (162 + 30, 108 + 20, 54 + 10, 27 + 5); the code's own default is 191 + 30.
    - If all patches can stay, they do so as they are, without CLS.
    - As the code has it and the paper has not, a contextual token is the sum of a token and the mean of those that are
      merged into it.
    - Scores, cosines and sums are float32 whatever the model's dtype.
    - Towers without a CLS token: none is kept, and the attention that patches receive from one another stands in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import reduce
from torch import Tensor

from tokenprune.conditioning.base import over_heads
from tokenprune.core.errors import ConfigError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal, TowerKeys
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import descending
from tokenprune.functional.vectors import take, unit, widen
from tokenprune.pruners.base import register_pruner
from tokenprune.pruners.dense import DensePruner
from tokenprune.pruners.saliency import tower_attention


@register_pruner("visionzip", paper="https://arxiv.org/abs/2412.04467", idea="merging")
@dataclass(frozen=True, kw_only=True)
class VisionZip(DensePruner):
    """Keeps CLS and the patches to which it attends most, and merges the others into a few, before the projector.

    Attributes:
        contextual_ratio: share of the kept tokens into which others are merged, in [0, 1).
    """

    contextual_ratio: float = 5 / 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.contextual_ratio < 1:
            raise ConfigError(f"option 'contextual_ratio' is {self.contextual_ratio!r}; it must be a number in [0, 1)")

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention of CLS, and keys, which say what is merged into what."""
        return frozenset({tower_attention(), TowerKeys()})

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """Before the projector, or before the LLM in families that have no such stage (inferred)."""
        return (spec.early_stage,)

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        score = over_heads(tokens, tower_attention())
        if tokens.special is not None:
            score = score.masked_fill(tokens.special, torch.inf)  # CLS stays
        contextual = min(round(k * self.contextual_ratio), k - 1)
        order, number = descending(score), k - contextual
        dominant, rest = order[:, :number].sort(1).values, order[:, number:].sort(1).values
        heads = tokens.signal(tower_attention()).shape[1]
        metric = reduce(widen(tokens.signal(TowerKeys())), "b n (h d) -> b n d", "mean", h=heads)
        targets, made = merge_evenly(widen(tokens.features), metric, rest, contextual)
        sequence = torch.cat([dominant, targets], 1)
        merged = torch.cat([take(tokens.features, dominant), made.to(tokens.features)], 1)
        keep, order = sequence.sort(1)
        return TokenSelection(keep, tokens.num_tokens, merged=take(merged, order), sequence=sequence)


def merge_evenly(x: Tensor, metric: Tensor, rest: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Merge tokens into those of them at even steps to which they are most alike.

    Args:
        x: (B, N, D).
        metric: (B, N, C), whose cosines tell what is alike.
        rest: (B, R) long, the tokens.
        number: of tokens that are made, fewer than R.

    Returns:
        Which tokens the others are merged into, (B, number) long, and the sums (B, number, D) of each and the mean of
        what is merged into it.
    """
    at = torch.arange(number, device=x.device) * max(1, rest.shape[1] // max(1, number))
    target = rest[:, at]
    own = take(x, target)
    if not number:
        return target, own
    metric = unit(take(metric, rest))
    is_other = torch.ones(rest.shape[1], dtype=torch.bool, device=x.device).scatter(0, at, False)
    nearest = (metric[:, is_other] @ metric[:, at].mT).argmax(2)
    grouped = nearest.argsort(dim=1, stable=True)
    return target, own + means(x, rest[:, is_other].gather(1, grouped), nearest.gather(1, grouped), number)


def means(x: Tensor, index: Tensor, group: Tensor, number: int) -> Tensor:
    """Means (B, number, D) of vectors (B, N, D) at an index (B, n), by a group (B, n) that rises; 0 of none.

    Nothing is copied on the way.
    """
    line = torch.arange(len(x), device=x.device)[:, None]
    starts = torch.searchsorted(group, torch.arange(number, device=x.device).expand(len(x), -1).contiguous())
    return torch.nn.functional.embedding_bag(
        (index + line * x.shape[1]).flatten(), x.flatten(0, 1), (starts + line * index.shape[1]).flatten(), mode="mean"
    ).view(len(x), number, -1)
