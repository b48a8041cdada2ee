"""PruMerge and PruMerge+: what CLS attends to, with what is like it added, and one token for all that leaves.

Paper: https://arxiv.org/abs/2403.15388
Code: https://github.com/42Shawn/LLaVA-PruMerge (Apache-2.0)
Differs:
    - The budget says how many tokens there are, the last one included. ``count="outliers"`` lets the attention decide,
      as the code does by default.
    - Tokens that PruMerge+ draws by attention and by place are one token, and the next best one stays besides. With
      ``repeat=True`` they are two tokens, as in the code at a fixed ratio, which loses the first dropped ones for them.
    - PruMerge+ spreads tokens over the image at even steps of any length; the code's steps are whole numbers, so that
      what it keeps is another number than asked for, where they do not divide.
    - The attention of all heads joined is put together from that of each: equal up to rounding.
    - As in the code, neighbours are added to a token with their attention as weights; the paper averages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal, TowerKeys
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.outliers import high_outliers
from tokenprune.functional.ranking import descending, leading
from tokenprune.functional.vectors import take, widen
from tokenprune.pruners.base import check_choice, register_pruner
from tokenprune.pruners.dense import DensePruner, at_patches, patches_of
from tokenprune.pruners.prumerge.merge import joined_attention, merged
from tokenprune.pruners.prumerge.spread import spread, spread_by_ratio, spread_once
from tokenprune.pruners.saliency import tower_attention

LAST = -1  # layer of the tower
Count = Literal["budget", "outliers"]


@register_pruner("prumerge", paper="https://arxiv.org/abs/2403.15388", idea="merging")
@dataclass(frozen=True, kw_only=True)
class PruMerge(DensePruner):
    """Keeps what CLS attends to, adds to each token what is like it, and sums up the others, before the projector.

    Attributes:
        plus: PruMerge+: half of the tokens are spread over the image.
        count: ``budget``, or ``outliers``: as many as get unusual attention, above the third quartile by 1.5 times the
            distance of the quartiles.
        neighbours: tokens with the most similar keys that are added to each kept one.
        repeat: whether tokens that are drawn twice are in the prompt twice.
    """

    plus: bool = False
    count: Count = "budget"
    neighbours: int = 32
    repeat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("count", self.count, get_args(Count))
        if self.neighbours < 0:
            raise ConfigError(f"option 'neighbours' is {self.neighbours!r}; it must be an integer of at least 0")
        if self.repeat and (self.adaptive or not self.plus):
            raise ConfigError("option 'repeat' is True; allowed with plus=True and count='budget'")

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention and keys of the tower's last layer."""
        return frozenset({tower_attention(LAST), TowerKeys(LAST)})

    @property
    def budget(self) -> Budget | None:
        """All tokens if the attention decides how many stay; else None."""
        return Budget(keep_ratio=1.0) if self.adaptive else None

    @property
    def adaptive(self) -> bool:
        """Whether the attention decides how many tokens of a row stay."""
        return self.count == "outliers"

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """Before the projector, or before the LLM in families that have no such stage (inferred)."""
        return (spec.early_stage,)

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        patch = patches_of(tokens)
        attention = joined_attention(tokens.signal(tower_attention(LAST))[:, :, patch])
        picks = self._outliers(attention)[:, : k - 1] if self.adaptive else self._picks(attention, k - 1)
        features, keys = (widen(at_patches(tokens, x)) for x in (tokens.features, tokens.signal(TowerKeys(LAST))))
        made, places = merged(features, keys, attention, picks, self.neighbours)
        sequence = patch.nonzero()[:, 0][places]
        keep, order = sequence.sort(1)
        return TokenSelection(keep, tokens.num_tokens, merged=take(made, order).to(tokens.features), sequence=sequence)

    def _picks(self, attention: Tensor, number: int) -> Tensor:
        """Patches (B, number) in the order of the code."""
        if not self.plus:
            return leading(attention, number)
        return (spread if self.repeat else spread_once)(attention, number)

    def _outliers(self, attention: Tensor) -> Tensor:
        """Patches (1, n) in the order of the code, as many as the attention says."""
        best = descending(attention)[:, : max(1, int(high_outliers(attention)))]
        return spread_by_ratio(best, attention.shape[1]) if self.plus else best
