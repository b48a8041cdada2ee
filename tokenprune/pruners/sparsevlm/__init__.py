"""SparseVLM and SparseVLM+: at three layers of the LLM, the text that relates to the image rates the visual tokens.

Paper: https://arxiv.org/abs/2410.04417
Code: https://github.com/Gumpest/SparseVLMs (Apache-2.0) @ 26a5f48, ``count="rank"`` @ 91fb6d9
Differs:
    - A budget counts what the last stage selects; merged tokens come on top, and ``average_tokens`` counts both. The
      code has four lists of counts a version. Ours: between two each stage is interpolated, below the least all shrink
      alike, above the largest they grow linearly to all tokens; and 2, 6, 15 of 32 layers are scaled to other depths.
    - The code drops one token at least; here keeping all is the identity. By rank, one stays at least.
    - The code adds noise of 1e-6 to densities, which tells equal ones apart; here the token that is rated better counts
      as the denser, and noise is an option, seeded.
    - If no text token is above average, as when there is one, all are raters; the code has none then.
    - Scores are float32, and merged tokens are plain means; the code adds 1e-6 to the sizes of the clusters.
    - Each row keeps its own tokens, and padding is left out; the code serves one row without padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import Literal

import torch

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import ImageEmbeds, RopeSimilarity, Signal, TextAttention, TextEmbeds, TextMask
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage, decoder
from tokenprune.core.steps import Placing, Step
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import take
from tokenprune.pruners.base import Pruner, check_choice, register_pruner
from tokenprune.pruners.sparsevlm.published import DEPTH, LAYERS, PUBLISHED, TOTAL, counts_between, scaled_layers
from tokenprune.pruners.sparsevlm.raters import attention_of_raters, count_by_rank, text_raters
from tokenprune.pruners.sparsevlm.recycle import merge_dropped, recycled

ATTENTION, ROPE = TextAttention(rows="all"), RopeSimilarity(rows="all")
TEXT = (ImageEmbeds(), TextEmbeds("all"), TextMask("all"))


@register_pruner("sparsevlm", paper="https://arxiv.org/abs/2410.04417", idea="attention")
@dataclass(frozen=True, kw_only=True)
class SparseVLM(Pruner):
    """Keeps the tokens to which the text that relates to the image attends most, and merges some of the others.

    Attributes:
        version: ``plus`` is SparseVLM+: attention is divided by what rotary positions alone do to it, and only the
            heads count in which the text attends to the image most.
        layers: decoder layers (0-based) after which tokens leave, ascending; the attention is theirs. None: 2, 6, 15.
        preset: published counts, which are the budget then, by their published average. (That takes layers 2, 6 and
            15 for pruned; the true averages of ``v1`` are 206, 145, 114 and 82 tokens.)
        count: ``table``: published counts; ``rank``: by the rank of the attention, each row by itself, with no budget.
        rank_scale, rank_bias: scale * rank + bias tokens stay; published for 192: 13.5, 0; 128: 9, 6; 64: 0.8, 0.
        recycle: cluster 30 % of what a stage drops, and append the means. None: ``v1`` does, ``plus`` does not.
        noise: largest noise on the densities of the clustering, which are in (0, 1].
        seed: another seed draws other noise.
        heads: so many count in ``plus``.
        positions: ``auto`` is ``original`` for ``plus``, and ``repacked`` for ``v1`` and wherever tokens are merged, as
            those have no position of their own. Under M-RoPE it is ``original``, and nothing is recycled unless
            ``recycle`` says so (inferred: the paper has no such model).
    """

    version: Literal["v1", "plus"] = "v1"
    layers: tuple[int, ...] | None = None
    preset: Literal[192, 128, 96, 64] | None = None
    count: Literal["table", "rank"] = "table"
    rank_scale: float = 13.5
    rank_bias: float = 0.0
    recycle: bool | None = None
    noise: float = 0.0
    seed: int = 0
    heads: int = 14

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("version", self.version, PUBLISHED)
        check_choice("count", self.count, ("table", "rank"))
        for option, least in {"rank_scale": 0, "rank_bias": 0, "noise": 0, "seed": 0, "heads": 1}.items():
            if not least <= getattr(self, option) < inf:
                raise ConfigError(f"option {option!r} is {getattr(self, option)}; it must be at least {least}")
        if self.preset is not None and (self.adaptive or self.preset not in PUBLISHED[self.version]):
            raise ConfigError(f"option 'preset' is {self.preset}; allowed with count='table': 192, 128, 96, 64")
        if self.layers is not None and any(a >= b for a, b in pairwise((-1, *self.layers))):
            raise ConfigError(f"option 'layers' is {list(self.layers)}; it must hold rising numbers of at least 0")
        if self.layers is not None and not (len(self.layers) == 3 or (self.layers and self.adaptive)):
            raise ConfigError(f"option 'layers' is {list(self.layers)}; the published counts are for three layers")
        if self.positions == "original" and self._recycles:
            raise ConfigError("option 'positions' is 'original', but merged tokens have none; give recycle=False")

    @property
    def _recycles(self) -> bool:
        return self.version == "v1" if self.recycle is None else self.recycle

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention of the text, embeddings that tell which of it relates to the image, and for ``plus`` rotation."""
        return frozenset({ATTENTION, *TEXT, *([ROPE] if self.version == "plus" else [])})

    @property
    def budget(self) -> Budget | None:
        """The budget of the preset, or all tokens if the rank decides; else None."""
        if self.preset is not None:
            return Budget(keep_ratio=PUBLISHED[self.version][self.preset][-1] / TOTAL)
        return Budget(keep_ratio=1.0) if self.adaptive else None

    @property
    def adaptive(self) -> bool:
        """Whether the rank of the attention decides how many tokens of a row stay."""
        return self.count == "rank"

    def steps(self, spec: ModelSpec) -> tuple[Step, ...]:
        """Steps of the pruner, of what it is on a model whose gaps cannot be closed."""
        several = spec.position_axes > 1 and self.positions == "auto" and self.recycle is None
        return Pruner.steps(replace(self, recycle=False) if several else self, spec)

    def placing(self, spec: ModelSpec) -> Placing:
        """What ``positions`` is on a model."""
        if self.positions == "auto" and self.version == "plus" and not self._recycles:
            return "original"
        return super().placing(spec)

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """The inputs of the layers after ``layers``."""
        depth, layers = spec.llm.layers, self.layers
        if layers is None and depth <= len(LAYERS):
            raise ConfigError(f"SparseVLM prunes after three layers, but the LLM has {depth}; give option 'layers'")
        return tuple(decoder(layer + 1) for layer in layers or scaled_layers(LAYERS, DEPTH, depth))

    def counts(self, spec: ModelSpec, keep: int, total: int) -> tuple[int, ...]:
        """How many visual tokens each stage selects: published counts, or counts interpolated between them."""
        if self.adaptive:
            return super().counts(spec, keep, total)
        return counts_between(PUBLISHED[self.version].values(), TOTAL, keep, total)

    def appended(self, dropped: int) -> int:
        """How many tokens a stage appends: one for each cluster of what is recycled."""
        return recycled(dropped)[1] if self._recycles else 0

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        raters = text_raters(*map(tokens.signal, TEXT))
        plus = (tokens.signal(ROPE), self.heads) if self.version == "plus" else ()
        rated = attention_of_raters(tokens.signal(ATTENTION), raters, *plus)
        scores = rated.sum(1) / raters.sum(1, keepdim=True)
        alive = tokens.valid_or_all.sum(1).tolist()
        if self.adaptive:
            k = min(k, count_by_rank(rated, raters, self.rank_scale, self.rank_bias))
        order = scores.masked_fill(~tokens.valid_or_all, -torch.inf).argsort(dim=1, descending=True, stable=True)
        keep, merged = order[:, :k].sort(1).values, None
        if self._recycles and k < max(alive):
            dropped = [row[k:n] for row, n in zip(order, alive, strict=True)]
            ids = tokens.content_ids() if self.noise else None
            means = merge_dropped(tokens.features, dropped, self.noise, self.seed, ids)
            merged = torch.cat([take(tokens.features, keep), means], 1)
        return TokenSelection(keep, tokens.num_tokens, scores=scores, merged=merged)
