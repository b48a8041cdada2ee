"""TRIM: the patches that CLIP relates to the question, and the mean of all others.

Paper: https://arxiv.org/abs/2409.10994
Code: https://github.com/FreedomIntelligence/TRIM (Apache-2.0)
Differs:
    - The mean counts in the budget, so K - 1 patches stay. In the code it is one more, and the row is filled up with
      zeros to its old length.
    - A number of tokens that the scores' outliers decide, which is the code's default, is not offered.
    - The text is the question without truncation; of pieces of 77 tokens the scores are averaged, each piece being
      normalised, which changes nothing if there is one.
    - The mean is float32 and then in the dtype of the features; the code returns float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.conditioning.base import per_token, text_vectors
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import PairedImage, PairedText, Signal
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import PROJECTOR, Stage
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import descending
from tokenprune.functional.vectors import take, unit, widen
from tokenprune.pruners.base import register_pruner
from tokenprune.pruners.dense import DensePruner, patches_of


@register_pruner("trim", paper="https://arxiv.org/abs/2409.10994")
@dataclass(frozen=True, kw_only=True)
class TRIM(DensePruner):
    """Keeps the patches that CLIP relates to the question, and the mean of all others, before the projector."""

    @property
    def requires(self) -> frozenset[Signal]:
        """Embeddings of patches and question in CLIP's space."""
        return frozenset({PairedImage(), PairedText()})

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """Before the projector."""
        return (PROJECTOR,)

    def score(self, tokens: VisualTokens) -> Tensor:
        """(B, N) negative dot product of patch and question, as CLIP's patches are the less alike the more they relate.

        Only the question is normalised: a patch's length counts.
        """
        patches = widen(per_token(tokens, PairedImage()))
        text = unit(widen(text_vectors(tokens, PairedText(), width=patches.shape[2])))
        return -(patches @ text.mT).mean(2)

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        patch = patches_of(tokens)
        order = descending(self.score(tokens), patch)
        kept = order[:, : k - 1].sort(1).values
        rest = patch.expand_as(order).scatter(1, kept, False)[:, :, None]
        mean = (widen(tokens.features) * rest).sum(1, keepdim=True) / rest.sum(1, keepdim=True)
        sequence = order[:, :k].scatter(1, torch.arange(k - 1, device=kept.device).expand_as(kept), kept)
        keep, at = sequence.sort(1)  # the mean has the place of the best that leaves, and is the last in the prompt
        merged = torch.cat([take(tokens.features, kept), mean.to(tokens.features)], 1)
        return TokenSelection(keep, tokens.num_tokens, merged=take(merged, at), sequence=sequence)
