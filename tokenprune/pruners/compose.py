"""Compose: several pruners one after another, such as CDPruner before the LLM and FastV inside.

Differs: there is no paper; how one budget is shared is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce

from tokenprune.core.budget import Budget
from tokenprune.core.errors import BudgetError, ConfigError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage, check_stages
from tokenprune.core.steps import Positions, Segments, Step
from tokenprune.core.tokens import VisualTokens
from tokenprune.pruners.base import Pruner, register_pruner
from tokenprune.pruners.member import Given, complete, make
from tokenprune.pruners.none import NoPruning


@register_pruner("compose", idea="composition")
@dataclass(frozen=True, kw_only=True)
class Compose(Pruner):
    """Keeps what is left after several pruners, each at stages of its own.

    Either each has a budget of its own, or one budget is for all: then each leaves the same share of what arrives at
    it, so that two that keep 64 of 576 tokens leave 192 and 64.

    Attributes:
        pruners: in the order of their stages, each a name, or a mapping of ``name``, options and, for a budget of its
            own, ``keep_tokens`` or ``keep_ratio`` (of what arrives at it), or in Python a pruner.
    """

    pruners: tuple[Given, ...] = ({"name": "cdpruner"}, {"name": "fastv"})
    positions: Positions = field(default="auto", init=False)  # no option: each member has its own
    segments: Segments = field(default="apart", init=False)  # likewise: each member has its own

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "pruners", tuple(map(complete, self.pruners)))
        if not self.members:
            raise ConfigError("option 'pruners' is empty; give at least one pruner")
        if any(isinstance(pruner, Compose) for pruner, _ in self.members):
            raise ConfigError("a composition cannot be a part of another; list its pruners instead")
        if idle := [_name(pruner) for pruner, _ in self.members if isinstance(pruner, NoPruning)]:
            raise ConfigError(f"{idle[0]} in a composition does nothing; leave it out")
        free = [_name(pruner) for pruner, budget in self.members if budget is None]
        if 0 < len(free) < len(self.members):
            raise ConfigError(f"either all pruners of a composition have a budget or none has; {free[0]} has none")

    @cached_property
    def members(self) -> tuple[tuple[Pruner, Budget | None], ...]:
        """The pruners, made, each with its budget if it has one."""
        return tuple(map(make, self.pruners))

    @property
    def requires(self) -> frozenset[Signal]:
        """Signals of all members; each member is given its own at its stages."""
        return frozenset[Signal]().union(*(pruner.requires for pruner, _ in self.members))

    @property
    def budget(self) -> Budget | None:
        """What the members' budgets leave together, apart from what a member appends; None if they have none."""
        own = [budget for _, budget in self.members if budget]
        return reduce(Budget.then, own) if own else None

    @property
    def adaptive(self) -> bool:
        """Whether the content of a row decides for a member how many of its tokens stay."""
        return any(pruner.adaptive for pruner, _ in self.members)

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """The stages of all members, one after another."""
        return tuple(stage for pruner, _ in self.members for stage in pruner.stages(spec))

    def steps(self, spec: ModelSpec) -> tuple[Step, ...]:
        """The steps of all members, one after another.

        Raises:
            ConfigError: if the model has no such layer, or a member does not come after the one before.
        """
        names = " and ".join(_name(pruner) for pruner, _ in self.members)
        check_stages(self.stages(spec), spec.llm.layers, f"the composition of {names}")
        return tuple(step for pruner, _ in self.members for step in pruner.steps(spec))

    def counts(self, spec: ModelSpec, keep: int, total: int) -> tuple[int, ...]:
        """How many visual tokens each stage selects, where each member leaves an equal share of what arrives at it."""
        if keep == 0:
            return (0,) * len(self.stages(spec))
        last = len(self.members)
        left = (round(total * (keep / total) ** (place / last)) for place in range(1, last + 1))
        return self._chain(spec, total, (partial(pruner.counts, spec, next(left)) for pruner, _ in self.members))

    def schedule(self, spec: ModelSpec, budget: Budget, total: int) -> tuple[int, ...]:
        """How many visual tokens each stage selects; members that have budgets select by their own.

        Raises:
            BudgetError: if a budget cannot be met, or ``budget`` is not what the members' budgets leave together.
        """
        if self.budget is None:
            return super().schedule(spec, budget, total)
        if budget != self.budget:
            raise BudgetError(f"{budget} does not apply: each pruner of the composition has a budget of its own")
        return self._chain(spec, total, (partial(pruner.schedule, spec, own) for pruner, own in self.members if own))

    def _chain(
        self, spec: ModelSpec, total: int, selects: Iterable[Callable[[int], tuple[int, ...]]]
    ) -> tuple[int, ...]:
        """Counts of all stages; ``selects`` gives a member's from the number of tokens that arrive at it."""
        arrived, counts = total, list[int]()
        for (pruner, _), select in zip(self.members, selects, strict=True):
            try:
                own = select(arrived)
            except BudgetError as error:
                raise BudgetError(f"{_name(pruner)}: {error}") from None
            arrived = pruner.arriving(spec, own, arrived)[-1]
            counts += own
        return tuple(counts)

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        """What the first member selects; at later stages the others are asked, see ``steps``."""
        return self.members[0][0].select(tokens, k)


def _name(pruner: Pruner) -> str:
    return type(pruner).__name__
