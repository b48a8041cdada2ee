"""TRIM: the patches that CLIP relates to the question, and the mean of all others.

Paper: https://arxiv.org/abs/2409.10994
Code: https://github.com/FreedomIntelligence/TRIM (Apache-2.0)
Differs:
    - The mean counts in the budget, so K - 1 patches stay. In the code it is one more, and the row is filled up with
      zeros to its old length.
    - ``count="outliers"``, the code's default, looks at each row by itself; the code at all rows of a batch.
    - The text is the question without truncation; of pieces of 77 tokens the scores are averaged.
    - The mean is float32 and then in the dtype of the features; the code returns float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenprune.conditioning.base import per_token, text_vectors
from tokenprune.core.budget import Budget
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import PairedImage, PairedText, Signal
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.outliers import high_outliers
from tokenprune.functional.ranking import leading
from tokenprune.functional.vectors import take, widen
from tokenprune.pruners.base import check_choice, register_pruner
from tokenprune.pruners.dense import DensePruner, patches_of

Count = Literal["budget", "outliers"]


@register_pruner("trim", paper="https://arxiv.org/abs/2409.10994", idea="relevance")
@dataclass(frozen=True, kw_only=True)
class TRIM(DensePruner):
    """Keeps the patches that CLIP relates to the question, and the mean of all others, before the projector.

    Attributes:
        count: ``budget``, or ``outliers``: as many patches as have unusually high scores after a softmax over them, at
            most the budget.
    """

    count: Count = "budget"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("count", self.count, get_args(Count))

    @property
    def budget(self) -> Budget | None:
        """All tokens if the scores decide how many stay; else None."""
        return Budget(keep_ratio=1.0) if self.adaptive else None

    @property
    def adaptive(self) -> bool:
        """Whether the scores decide how many tokens of a row stay."""
        return self.count == "outliers"

    @property
    def requires(self) -> frozenset[Signal]:
        """Embeddings of patches and question in CLIP's space."""
        return frozenset({PairedImage(), PairedText()})

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """Before the projector, or before the LLM in families that have no such stage (inferred)."""
        return (spec.early_stage,)

    def score(self, tokens: VisualTokens) -> Tensor:
        """(B, N) negative dot product of patch and question, as CLIP's patches are the less alike the more they relate.

        Nothing is normalised: a patch's length counts.
        """
        patches = widen(per_token(tokens, PairedImage()))
        return -(patches @ widen(text_vectors(tokens, PairedText(), width=patches.shape[2])).mT).mean(2)

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        patch = patches_of(tokens)
        scores = self.score(tokens)
        if self.adaptive:
            k = min(k, 1 + int(high_outliers(scores[:, patch].softmax(1))))
        order = leading(scores if tokens.special is None else scores.masked_fill(~patch, -torch.inf), k)
        kept, first = order[:, :-1].sort(1).values, order[:, -1:]  # the mean has the place of the best that leaves
        features = widen(tokens.features)
        rest = patch.to(features).expand(len(order), 1, -1).scatter(2, kept[:, None], 0)
        mean = rest @ features / rest.sum(2, keepdim=True)
        sequence = torch.cat([kept, first], 1)  # and is the last in the prompt
        keep = sequence.sort(1).values
        at = (keep == first).long().argmax(1)[:, None, None].expand_as(mean)
        merged = take(tokens.features, keep).scatter_(1, at, mean.to(tokens.features))
        return TokenSelection(keep, tokens.num_tokens, merged=merged, sequence=sequence)
