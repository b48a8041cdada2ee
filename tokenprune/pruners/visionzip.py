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
        metric = reduce(widen(take(tokens.signal(TowerKeys()), rest)), "b n (h d) -> b n d", "mean", h=heads)
        targets, made = merge_evenly(widen(take(tokens.features, rest)), metric, contextual)
        sequence = torch.cat([dominant, rest[:, targets]], 1)
        merged = torch.cat([take(tokens.features, dominant), made.to(tokens.features)], 1)
        keep, order = sequence.sort(1)
        return TokenSelection(keep, tokens.num_tokens, merged=take(merged, order), sequence=sequence)


def merge_evenly(x: Tensor, metric: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Merge tokens into those at even steps to which they are most alike.

    Args:
        x: (B, R, D).
        metric: (B, R, C), whose cosines tell what is alike.
        number: of tokens that are made, fewer than R.

    Returns:
        Which tokens the others are merged into, (number,) long, and the sums (B, number, D) of each and the mean of
        what is merged into it.
    """
    target = torch.arange(number, device=x.device) * max(1, x.shape[1] // max(1, number))
    own = x[:, target]
    if not number:
        return target, own
    other = torch.ones(x.shape[1], dtype=torch.bool, device=x.device).scatter(0, target, False)
    metric = unit(metric)
    nearest = (metric[:, other] @ metric[:, target].mT).argmax(2)
    member = torch.nn.functional.one_hot(nearest, number).to(x).mT
    return target, own + member @ x[:, other] / member.sum(2, keepdim=True).clamp(min=1)
