"""HoloV: a share of each part of the picture by the attention in it, and in each part what is attended to most.

Paper: https://arxiv.org/abs/2510.02912
Code: https://github.com/obananas/HoloV (Apache-2.0)
Differs:
    - The code adds 0.09 times the variance of the tokens' similarity to the attention of a run, after scaling it to the
      same mean. So each run's share is that of its attention, whatever the similarities are; they are not computed.
    - What a run is too small to take goes to the most attended tokens of the others; the code fills up with zeros.
    - The parts of the picture are 16 runs of tokens in raster order, as in the code for LLaVA; the paper shows crops.
      In the code for Qwen their number depends on the budget.
    - Towers without a CLS token: the attention that patches receive from one another stands in (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenprune.conditioning.base import over_heads
from tokenprune.core.errors import ConfigError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import descending, highest
from tokenprune.pruners.base import check_choice, register_pruner
from tokenprune.pruners.dense import DensePruner
from tokenprune.pruners.saliency import tower_attention

Order = Literal["attention", "raster"]


@register_pruner("holov", paper="https://arxiv.org/abs/2510.02912", idea="attention")
@dataclass(frozen=True, kw_only=True)
class HoloV(DensePruner):
    """Keeps a share of each stretch of the picture by the attention in it, and there what CLS attends to most.

    Attributes:
        runs: stretches of tokens in raster order, the first ones of which are longer by one if they do not divide.
        order: in which tokens enter the prompt: ``attention``: by stretch and falling attention, as in the official
            code; ``raster``.
    """

    runs: int = 16
    order: Order = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, get_args(Order))
        if self.runs < 1:
            raise ConfigError(f"option 'runs' is {self.runs!r}; it must be an integer of at least 1")

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention of CLS, or of the patches where there is none."""
        return frozenset({tower_attention()})

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        attention, n = over_heads(tokens, tower_attention()), tokens.num_tokens
        runs = torch.arange(n, device=attention.device).tensor_split(min(self.runs, n))
        sizes = torch.tensor([len(run) for run in runs], device=attention.device)
        counts = shares(attention, runs, k).repeat_interleave(sizes, 1)
        grouped = torch.cat([run[descending(attention[:, run])] for run in runs], 1)
        rank = torch.cat([run - run[0] for run in runs])
        kept = torch.zeros_like(attention, dtype=torch.bool).scatter(1, grouped, rank < counts)
        kept = highest(attention.masked_fill(kept, torch.inf), k)  # and what a run was too small to take
        sequence = grouped[kept.gather(1, grouped)].view(-1, k)
        keep = sequence.sort(1).values
        return TokenSelection(keep, n, sequence=sequence if self.order == "attention" else None)


def shares(attention: Tensor, runs: Sequence[Tensor], k: int) -> Tensor:
    """How many tokens each run keeps, by its mean attention; what rounding leaves goes to the runs with most of it.

    Args:
        attention: (B, N).
        runs: tokens of each.
        k: tokens that all of them keep.

    Returns:
        (B, runs); maybe more than a run has.
    """
    mean = torch.stack([attention[:, run].mean(1) for run in runs], 1)
    total = mean.sum(1, keepdim=True).clamp(min=torch.finfo(mean.dtype).tiny)
    counts = (k * mean / total).floor()
    rank = descending(mean).argsort(1)
    return counts + (rank < k - counts.sum(1, keepdim=True))
