"""PruneSID: groups by principal components, and in each the tokens with most CLS attention that are not alike.

Paper: https://arxiv.org/abs/2603.09480
Code: https://github.com/ZhengyaoFang/PruneSID (Apache-2.0 by its README, no licence file; from the formula alone)
Differs:
    - Components are exact. The code draws random projections without a seed, so that from one run of it to the next a
      fifth to a third of the kept tokens change.
    - Tokens are scored by attention, as in the code for LLaVA; the paper scores them by their components.
    - The number of tokens is the budget's; the paper's number by the content of the picture is not in the code.
    - A budget below 4 makes one group; the code has none and fails. If all patches can stay, they stay without CLS.
    - Towers without a CLS token: the attention that patches receive from one another stands in, and a patch more
      stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenprune.conditioning.base import over_heads
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage
from tokenprune.core.tokens import VisualTokens
from tokenprune.pruners.base import register_pruner
from tokenprune.pruners.dense import DensePruner, at_patches, patches_of
from tokenprune.pruners.prunesid.groups import principal_groups
from tokenprune.pruners.prunesid.within import best_of_groups
from tokenprune.pruners.saliency import tower_attention

A_GROUP = 4  # tokens of the budget for each group


@register_pruner("prunesid", paper="https://arxiv.org/abs/2603.09480", idea="diversity")
@dataclass(frozen=True, kw_only=True)
class PruneSID(DensePruner):
    """Keeps CLS and, of each group of patches that share a principal component, attended ones that are not alike."""

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention of CLS, or of the patches where there is none."""
        return frozenset({tower_attention()})

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """Before the projector, or before the LLM in families that have no such stage (inferred)."""
        return (spec.early_stage,)

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        patch = patches_of(tokens)
        features, patches, cls = at_patches(tokens, tokens.features), patch.nonzero()[:, 0], (~patch).nonzero()[:1, 0]
        total = k + 1 - len(cls)  # the code counts CLS
        groups = principal_groups(features, max(1, total // A_GROUP))
        picks = best_of_groups(features, at_patches(tokens, over_heads(tokens, tower_attention())), groups, total)
        sequence = torch.cat([cls.expand(len(picks), -1), patches[picks]], 1)
        return TokenSelection(sequence.sort(1).values, tokens.num_tokens, sequence=sequence)
