"""Pruners whose every property can be chosen, and plans of operations, for tests of what runs them."""

import dataclasses
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenprune.core.plan import Operation, Operations
from tokenprune.core.signals import Library, PairedImage, PairedText, Signal, TextAttention, TextRows
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage, decoder
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

    @property
    def requires(self) -> frozenset[Signal]:
        return frozenset({self.attention})

    @property
    def attention(self) -> TextAttention:
        return TextAttention("own" if self.own else "previous", self.rows)

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        return tuple(decoder(layer) for layer in self.layers)

    def counts(self, spec: ModelSpec, keep: int, total: int) -> tuple[int, ...]:
        number = len(self.layers)
        return tuple(round(total * (keep / total) ** (step / number)) for step in range(1, number + 1))

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.signal(self.attention).mean(1)[:, -1]


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
