"""Pruners whose every property can be chosen, and plans of operations, for tests of what runs them."""

import dataclasses
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tokenprune.core.plan import Operation, Operations
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Library, PairedImage, PairedText, Signal, TextAttention, TextRows
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage, cache, decoder, tower
from tokenprune.core.tokens import VisualTokens
from tokenprune.pruners.base import ScorePruner

LAYERS = 4  # of the tiny models


@dataclasses.dataclass(frozen=True, kw_only=True)
class Project(ScorePruner):
    """Scores by a fixed random direction, so that what stays depends on the features alone, not on their place."""

    def score(self, tokens: VisualTokens) -> Tensor:
        direction = torch.randn(tokens.features.shape[-1], generator=torch.Generator().manual_seed(3))
        return tokens.features.float() @ direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relevance(ScorePruner):
    """Scores by the cosine of patch and question in CLIP's space."""

    library: Library | None = None

    @property
    def requires(self) -> frozenset[Signal]:
        return frozenset(self.paired)

    @property
    def paired(self) -> tuple[PairedImage, PairedText]:
        return PairedImage(self.library), PairedText(self.library)

    def score(self, tokens: VisualTokens) -> Tensor:
        image, text = (F.normalize(tokens.signal(each), dim=-1) for each in self.paired)
        return (image @ text.mT).mean(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Within(ScorePruner):
    """Keeps what the last token attends to, at the layers given, by equal shares."""

    layers: tuple[int, ...] = (2,)
    positions: Literal["original", "repacked"] = "original"
    own: bool = False
    rows: TextRows = "last"
    after: Literal["attention"] | None = None
    earlier_caches: bool = False

    @property
    def requires(self) -> frozenset[Signal]:
        return frozenset({self.attention})

    @property
    def attention(self) -> TextAttention:
        return TextAttention("own" if self.own else "previous", self.rows)

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        cut = self.earlier_caches
        return tuple(decoder(layer, after=self.after, earlier_caches=cut) for layer in self.layers)

    def counts(self, spec: ModelSpec, keep: int, total: int) -> tuple[int, ...]:
        number = len(self.layers)
        return tuple(round(total * (keep / total) ** (step / number)) for step in range(1, number + 1))

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.signal(self.attention).mean(1)[:, -1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Early(Project):
    """Keeps what ``Project`` keeps, at the inputs of layers of the vision tower, by equal shares."""

    layers: tuple[int, ...] = (1,)

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        return tuple(map(tower, self.layers))

    def counts(self, spec: ModelSpec, keep: int, total: int) -> tuple[int, ...]:
        number = len(self.layers)
        return tuple(round(total * (keep / total) ** (step / number)) for step in range(1, number + 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InCaches(Within):
    """Keeps what the last token attends to in the caches of the layers given, in each as many, or by heads."""

    layers: tuple[int, ...] = (1, 3)
    by_heads: Literal["no", "alike", "ragged"] = "no"

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        return tuple(map(cache, self.layers))

    def counts(self, spec: ModelSpec, keep: int, total: int) -> tuple[int, ...]:
        return (keep,) * len(self.layers)

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        if self.by_heads == "no":
            return super()._select(tokens, k)
        attention = rearrange(tokens.signal(self.attention)[:, :, -1], "b (g h) n -> b g h n", g=2).sum(2)
        flat = attention if self.by_heads == "alike" else rearrange(attention, "b g n -> b 1 (g n)")
        best = flat.topk(k if self.by_heads == "alike" else 2 * k, dim=2).indices
        return TokenSelection.from_heads((torch.zeros_like(flat).scatter(2, best, 1) > 0).view_as(attention))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned(Project):
    """Keeps what ``Project`` keeps, and runs a given plan for it."""

    given: Operations | None = None
    positions: Literal["original", "repacked"] = "original"

    def operations(self, spec: ModelSpec) -> Operations | None:
        return self.given


def random_plan(seed: int, groups: int = 1) -> Operations:
    """A plan that runs about six of ten operations of each group."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(LAYERS, 3, groups, generator=generator) < 0.6
    active[0, Operation.ATTENTION_SOURCE] = True
    return Operations(active, (1 / groups,) * groups)


def depthwise(sources: int, receivers: int, mlp: int) -> Operations:
    """A plan of one group in which each operation runs in the first layers, and in none after them."""
    active = torch.zeros(LAYERS, 3, 1, dtype=torch.bool)
    for operation, depth in enumerate((sources, receivers, mlp)):
        active[:depth, operation] = True
    return Operations(active)
