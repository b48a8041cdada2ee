"""Steps of a pruner, and what a session or an adapter needs of what selects at each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from tokenprune.core.plan import Operations
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Scored, ScoringLayer, Signal
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage
from tokenprune.core.tokens import VisualTokens

if TYPE_CHECKING:
    from tokenprune.core.budget import Budget


Placing = Literal["original", "repacked"]
Positions = Literal["auto", "original", "repacked"]
Segments = Literal["apart", "together"]


@dataclass(frozen=True)
class Step:
    """A step: a stage with what selects there.

    Attributes:
        stage: where tokens leave.
        selector: what selects there: the pruner itself, or a member of a composition.
        positions: ``repacked`` gives the kept tokens consecutive position ids, ``original`` leaves them their own.
    """

    stage: Stage
    selector: Selector
    positions: Placing


def scoring_layers(requires: Iterable[Signal]) -> set[ScoringLayer]:
    """Which layers' attention some signals are made of, alternatives included; empty if of no layer's."""
    alternatives = (each for signal in requires for each in signal.alternatives)
    return {signal.layer for signal in alternatives if isinstance(signal, Scored)}


class Selector(Protocol):
    """What a session or an adapter needs of a pruner; ``tokenprune.pruners.base.Pruner`` has it and explains it."""

    @property
    def segments(self) -> Segments:
        """Whether segments (tiles and frames) are rows by themselves, or one row together."""

    @property
    def requires(self) -> frozenset[Signal]:
        """Signals without which the pruner cannot select."""

    @property
    def budget(self) -> Budget | None:
        """The budget that the options fix, or None."""

    @property
    def adaptive(self) -> bool:
        """Whether the content of a row decides how many of its tokens stay."""

    def appended(self, dropped: int) -> int:
        """How many tokens a stage appends that drops ``dropped`` tokens."""

    def steps(self, spec: ModelSpec) -> tuple[Step, ...]:
        """Steps of the pruner, in the order of the layers."""

    def schedule(self, spec: ModelSpec, budget: Budget, total: int) -> tuple[int, ...]:
        """How many of ``total`` visual tokens each step selects."""

    def operations(self, spec: ModelSpec) -> Operations | None:
        """Which operations run for the tokens that are there; None for all."""

    def select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        """Which ``k`` tokens of each row stay."""
