"""A policy of operation pruning: what a fit found, what it was fitted on, and the measurements that led there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenprune.core.errors import ConfigError
from tokenprune.core.sizes import ModelSpec
from tokenprune.pruners.dop.cost import CostKind
from tokenprune.pruners.dop.curves import Curves
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.dop.latency import LatencyModel
from tokenprune.pruners.dop.solve import Candidate

AttentionReading = Literal["remove", "update_only"]
Positions = Literal["first_token", "teacher_forced"]
Direction = Literal["forward", "reverse"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a policy was fitted on.

    Attributes:
        model: its name in a configuration.
        path: hub id or folder of its checkpoint; None for the embedded model.
        weights: fingerprint of the weights.
        data: hash of the samples.
        code: hash of the source that decides about the result.
    """

    model: str
    path: str | None = None
    weights: str
    data: str
    code: str


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How divergence from the unpruned model was measured.

    Attributes:
        samples: how many, at least 1.
        positions: of the output distributions: that of the first answer token, or the mean over the unpruned model's
            own greedy answer.
        direction: KL(unpruned || pruned) is forward.
        attention: what it means to prune attention: ``remove`` takes the visual tokens out of it, ``update_only`` stops
            their updates and leaves their keys and values.
    """

    samples: int
    positions: Positions = "first_token"
    direction: Direction = "forward"
    attention: AttentionReading = "remove"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples must be at least 1, got {self.samples}")


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The budget of a policy.

    Attributes:
        kind: what is limited.
        value: most that a policy may cost, a positive number.
        text_tokens: other tokens of the prompt that the cost was computed with.
        latency: fitted to the machine; given if ``kind`` is ``milliseconds``, and only then.
    """

    kind: CostKind
    value: float
    text_tokens: int = 0
    latency: LatencyModel | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise ConfigError(f"value must be a positive number, got {self.value}")
        if self.text_tokens < 0:
            raise ConfigError(f"text_tokens must be at least 0, got {self.text_tokens}")
        if (self.kind == "milliseconds") != (self.latency is not None):
            raise ConfigError(f"a latency model belongs to a budget of milliseconds and to no other, got {self.kind}")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A policy of operation pruning, as a fit found it.

    Attributes:
        origin: what it was fitted on.
        base: the pruner that chooses the visual tokens that enter the LLM: its name and all its options,
            in plain numbers, text, lists and mappings.
        objective: how divergence was measured.
        curves: the measurements.
        budget: what the policy had to meet.
        chosen: the policy, with its cost and divergence.
        candidates: the best ones by predicted divergence, of which it was chosen.

    Raises:
        ConfigError: if the parts contradict each other.
    """

    origin: Origin
    base: Mapping[str, Any]
    objective: Objective
    curves: Curves
    budget: Limit
    chosen: Candidate
    candidates: tuple[Candidate, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.base.get("name"), str):
            raise ConfigError(f"base needs the name of a pruner, got {self.base.get('name')!r}")
        update_only = self.objective.attention == "update_only"
        depths = [self.chosen.depths, *(candidate.depths for candidate in self.candidates)]
        if {update_only, self.curves.update_only, *(one.update_only for one in depths)} != {update_only}:
            raise ConfigError(f"attention is {self.objective.attention!r}, but not in all depths and curves")
        for one in depths:
            one.check(self.curves.layers, self.curves.visual_tokens)

    @property
    def depths(self) -> Depths:
        """Depths of the policy that was chosen."""
        return self.chosen.depths

    def check(self, spec: ModelSpec) -> None:
        """Refuse a model that has fewer layers or visual tokens than the policy speaks of.

        Raises:
            ConfigError: if the model has fewer of either.
        """
        self.depths.check(spec.llm.layers, spec.visual_tokens)
