"""The base classes of pruners, their registry, and how one is made from a name and options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

from tokenprune.core.budget import Budget
from tokenprune.core.errors import BudgetError, ConfigError, hint
from tokenprune.core.options import construct
from tokenprune.core.plan import OperationPlan, Operations
from tokenprune.core.precision import exact, on_cpu_unless_said
from tokenprune.core.registry import Registry
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import PRE_LLM, Stage, check_stages
from tokenprune.core.steps import Placing, Positions, Segments, Step
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import leading

P = TypeVar("P", bound="Pruner")
Idea = Literal["attention", "relevance", "diversity", "coverage", "merging", "operations", "composition", "baseline"]
PRUNERS: Registry[Pruner]


@dataclass(frozen=True, kw_only=True)
class Pruner(ABC):
    """A method that decides which visual tokens stay.

    Subclasses are frozen dataclasses: fields are options, checked in ``__post_init__`` (call the parent's), and nothing
    is kept between calls.

    Attributes:
        positions: ``repacked`` gives the kept tokens consecutive position ids, ``original`` leaves them their own;
            ``auto`` is ``repacked`` where position ids have one axis, and ``original`` under M-RoPE.
        segments: whether segments, the tiles of an image or the frames of a video, are rows by themselves before the
            LLM (``apart``), with shares of the budget in proportion to their tokens, or one row ``together``, whose
            budget a method shares out by itself, see ``VisualTokens.quota``. Inside the LLM a row is a prompt.
    """

    positions: Positions = "auto"
    segments: Segments = "apart"

    def __post_init__(self) -> None:
        check_choice("positions", self.positions, get_args(Positions))
        check_choice("segments", self.segments, get_args(Segments))

    @property
    def requires(self) -> frozenset[Signal]:
        """Signals without which this pruner, with these options, cannot select."""
        return frozenset()

    @property
    def budget(self) -> Budget | None:
        """The budget that the options fix, of published presets and the like; None leaves it to the user."""
        return None

    def shown(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a table says of the pruner after its name.

        Args:
            options: those without which it would be another pruner.
        """
        return options

    @property
    def adaptive(self) -> bool:
        """Whether the content of a row decides how many of its tokens stay; the budget is then the most."""
        return False

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """Stages of the pruner, where tokens leave, in the order of the layers; before the LLM unless overridden."""
        return (PRE_LLM,)

    def counts(self, spec: ModelSpec, keep: int, total: int) -> tuple[int, ...]:
        """How many visual tokens each stage selects if ``keep`` of ``total`` are to be left after the last.

        The last count grows with ``keep``, and is 0 at 0. A stage may select nothing: then all visual tokens leave.
        """
        return (keep,) * len(self.stages(spec))

    def appended(self, dropped: int) -> int:
        """How many tokens a stage appends that drops ``dropped`` tokens."""
        return 0

    def steps(self, spec: ModelSpec) -> tuple[Step, ...]:
        """Steps of the pruner: its stages, each with what selects there.

        Raises:
            ConfigError: if the model has no such layer.
        """
        stages = self.stages(spec)
        check_stages(stages, spec.llm.layers, type(self).__name__)
        return tuple(Step(stage, self, self.placing(spec)) for stage in stages)

    def placing(self, spec: ModelSpec) -> Placing:
        """What ``positions`` is on a model."""
        if self.positions == "auto":
            return "repacked" if spec.position_axes == 1 else "original"
        return self.positions

    def schedule(self, spec: ModelSpec, budget: Budget, total: int) -> tuple[int, ...]:
        """How many visual tokens each stage selects under a budget.

        Args:
            spec: sizes of the model.
            budget: what of ``total`` tokens may stay.
            total: visual tokens before the first stage.

        Raises:
            BudgetError: if the budget cannot be met.
        """

        def spent(keep: int) -> float:
            plan = self.plan(spec, self.alive(spec, self.counts(spec, keep, total), total), total)
            return plan.mean_tokens if budget.flops is None else plan.prefill_flops(spec.llm, budget.text_tokens)

        return self.counts(spec, budget.resolve(total, spent), total)

    def alive(self, spec: ModelSpec, counts: Sequence[int], total: int) -> tuple[int, ...]:
        """Live tokens behind each stage if ``counts`` visual tokens are selected; those that are appended count.

        Of a stage in a cache it is what the cache holds; the layers after it see what they saw.
        """
        arriving = self.arriving(spec, counts, total)
        steps = zip(counts, arriving, self.steps(spec), strict=False)
        return tuple(count + step.selector.appended(there - count) for count, there, step in steps)

    def arriving(self, spec: ModelSpec, counts: Sequence[int], total: int) -> tuple[int, ...]:
        """Live tokens before each stage if ``counts`` visual tokens are selected, and last those behind all stages."""
        left = [total]
        for count, step in zip(counts, self.steps(spec), strict=True):
            cut = step.stage.place == "cache"
            left.append(left[-1] if cut else count + step.selector.appended(left[-1] - count))
        return tuple(left)

    def plan(self, spec: ModelSpec, alive: Sequence[int], total: int) -> OperationPlan:
        """The plan of which operations run if ``alive`` of ``total`` visual tokens are live behind the stages."""
        return OperationPlan.drop_at(spec, self.stages(spec), alive, total)

    def operations(self, spec: ModelSpec) -> Operations | None:
        """Which operations run for the visual tokens that are there; None for all, as of any pruning of tokens."""
        return None

    def select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        """Decide which tokens of each row stay; a caller's autocast, default dtype and default device change nothing.

        Args:
            tokens: the visual tokens of a stage.
            k: how many of each row stay, tokens; at least 1.

        Returns:
            The selection; with ``k`` = N the identity.

        Raises:
            BudgetError: if a row has fewer than ``k`` tokens.
            SelectionError: if a signal is missing.
        """
        least = tokens.num_tokens if tokens.valid is None else int(tokens.valid.sum(1).min())
        if not 1 <= k <= least:
            raise BudgetError(f"cannot keep {k} of {least} visual tokens; keep between 1 and {least}")
        with exact(tokens.features.device), on_cpu_unless_said():
            return self._select(tokens, k)

    @abstractmethod
    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        """The method itself; 1 <= k <= the number of valid tokens in each row."""


class ScorePruner(Pruner):
    """A pruner that scores each token by itself and keeps the best; lower indices win ties."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Tensor:
        """Scores of the visual tokens, (B, N); higher stays."""

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        scores = self.score(tokens)
        ranked = scores if tokens.valid is None else scores.masked_fill(~tokens.valid, -torch.inf)
        return TokenSelection.from_order(leading(ranked, k), tokens.num_tokens, scores)


def check_choice(option: str, value: object, allowed: Iterable[str]) -> None:
    """Refuse a value of an option that is none of those allowed.

    Raises:
        ConfigError: says what is allowed.
    """
    options = list(allowed)
    if value not in options:
        raise ConfigError(f"option {option!r} is {value!r}; {hint(value, options)}")


PRUNERS = Registry("pruner", package="tokenprune.pruners", group="tokenprune.pruners")


def register_pruner(name: str, *, paper: str | None = None, idea: Idea | None = None) -> Callable[[type[P]], type[P]]:
    """Class decorator that makes a pruner known to the CLI, YAML files, the contract tests and the docs.

    Args:
        name: public name; also that of its file and YAML file.
        paper: URL of the paper.
        idea: family of ideas, by which lists are grouped.

    Raises:
        RegistryError: if the name is malformed or taken.
    """
    return cast(Callable[[type[P]], type[P]], PRUNERS.register(name, paper=paper, idea=idea))


def create_pruner(name: str, **options: Any) -> Pruner:
    """Make a pruner from its name and options.

    Args:
        name: a registered name.
        **options: the fields of its dataclass.

    Raises:
        RegistryError: if the name is unknown.
        ConfigError: if an option is unknown, of the wrong type or has a bad value.
    """
    return construct(PRUNERS.get(name), options, f"pruner {name!r}")


def as_pruner(pruner: str | Pruner | Sequence[str | Mapping[str, Any] | Pruner], options: Mapping[str, Any]) -> Pruner:
    """A pruner: one that is made already, of a registered name, or several that follow one another.

    Raises:
        RegistryError: if a name is unknown.
        ConfigError: if an option is bad, or options come with a pruner that is made already.
    """
    if isinstance(pruner, Pruner):
        if options:
            raise ConfigError(f"the options {sorted(options)} go with a pruner's name, but the pruner is made already")
        return pruner
    if isinstance(pruner, str):
        return create_pruner(pruner, **options)
    return create_pruner("compose", pruners=tuple(pruner), **options)
