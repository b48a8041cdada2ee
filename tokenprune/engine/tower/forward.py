"""A forward of a vision tower between whose layers patches leave."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal
from tokenprune.core.steps import Step
from tokenprune.core.tokens import VisualTokens
from tokenprune.engine.stopwatch import stopwatch
from tokenprune.engine.tower.left import PatchesLeft
from tokenprune.engine.tower.signals import asked_of, remembered
from tokenprune.functional.vectors import take
from tokenprune.towers.base import TowerOutput
from tokenprune.towers.items import Grid
from tokenprune.towers.pictures import content_id
from tokenprune.towers.rows import RowTower

Arguments = Mapping[str, Any]


def nothing(forward: TowerForward) -> None:
    """Take no notice of the last stage."""


@dataclass(eq=False)
class TowerForward:
    """A forward that is under way, or has been; prefix tokens such as CLS always stay.

    Attributes:
        tower, model: whose.
        steps: what selects at which layers, ascending.
        counts: patches of each picture that each step keeps.
        pictures: (I, 3, h, w), pixels.
        grid: (height, width) of the patches; None if they are in none.
        left: patches that are left behind each stage; none has run yet.
        later: signals of the tower that are made when it has run.
        chosen: is called once the last stage is over.
        hidden_states: of layers that signals need, what each was given, (I, L, V).
        arguments: of these layers, what else each was given.
        labels: (I, n) long, what a stage handed on about the patches that are left; None if none did.
        seconds: that the selections took.
    """

    tower: RowTower
    model: Any
    steps: Sequence[Step]
    counts: Sequence[int]
    pictures: Tensor
    grid: Grid | None
    left: PatchesLeft
    later: Sequence[Signal] = ()
    chosen: Callable[[TowerForward], None] = nothing
    hidden_states: dict[int, Tensor] = field(default_factory=dict)
    arguments: dict[int, Arguments] = field(default_factory=dict)
    labels: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"selection": 0.0})

    @property
    def seen(self) -> TowerOutput:
        """What layers were given, as signals are made of it."""  # not kept: a circle would hold hidden states
        return TowerOutput(self.model, "image", self, self.arguments)

    @functools.cached_property
    def remembers(self) -> frozenset[int]:
        """Layers whose input signals are made of."""
        return remembered(self.tower, self.seen.config, self.steps, self.later)

    @property
    def kept(self) -> Tensor | None:
        """Which patches are left, (I, n) long; None while all are."""
        kept = next(reversed(self.left.stages.values()), None)
        return None if kept is None or kept.shape[1] == self.left.number else kept

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled layers are compiled without what selects
    def enter(self, index: int, hidden: Tensor, arguments: Arguments) -> tuple[Tensor, Arguments]:
        """What a layer is given: hidden states (I, L, V) and other arguments, of the patches that are left."""
        for place, step in enumerate(self.steps):
            if step.stage.layer == index:
                if index in self.remembers:
                    self.hidden_states[index] = hidden  # as it arrives, for what selects
                hidden = self._shorten(place, index, hidden)
        aligned = self.tower.aligned(arguments, self.kept)
        if index in self.remembers:
            self.hidden_states[index], self.arguments[index] = hidden, aligned
        return hidden, aligned

    def _shorten(self, place: int, index: int, hidden: Tensor) -> Tensor:
        """The prefix and the patches that stay, of the hidden states (I, L, V) at a stage."""
        prefix = self.tower.prefix(self.seen.config)
        patches, kept = hidden[:, prefix:], self.kept
        number = patches.shape[1]
        if kept is None and number != self.left.number:
            raise ModelError("some patches left before the first block; switch the model's patch dropout off")
        with torch.no_grad(), stopwatch(self.seconds, "selection", hidden.device):
            selection = self._select(place, patches.detach())
        _check(selection, self.steps[place])
        alive = selection.keep if kept is None else kept.to(hidden.device).gather(1, selection.keep)
        self.left.stages[index] = alive
        self.labels = _labels(selection, self.labels)
        if place == len(self.steps) - 1:
            self.chosen(self)
        if selection.merged is None and alive.shape[1] == number:
            return hidden
        if selection.merged is not None:
            stay = selection.merged.to(patches)
        else:
            stay = take(patches, selection.keep) if selection.into is None else selection.apply(patches)
        return torch.cat([hidden[:, :prefix], stay], 1)

    def _select(self, place: int, patches: Tensor) -> TokenSelection:
        """What a step chooses of patches (I, n, V)."""
        step, signals = self.steps[place], {}
        for asked, signal in asked_of(step, self.tower):
            found = self.left.last(self.tower.signal(signal, self.seen))
            axis = 1 + asked.shape.split().index("tokens")
            signals[str(asked)] = found.movedim(1, axis).to(patches.device)

        def ids() -> Tensor:
            # With the place, so that a random draw at one stage tells nothing about that at another.
            return torch.stack([content_id(picture) for picture in self.pictures]) + 2 * place

        grid = self.grid if self.kept is None else None
        history, labels = self.left.history[: place + 1], self.labels
        tokens = VisualTokens(patches, signals, grid, row_ids=ids, labels=labels, history=history[:-1])
        return step.selector.select(tokens, self.counts[place])


def _labels(selection: TokenSelection, before: Tensor | None) -> Tensor | None:
    """What is handed on about the patches that stay, (I, n) long: what was said last."""
    if selection.labels is not None or before is None:
        return selection.labels
    return before.gather(1, selection.keep.to(before.device))


def _check(selection: TokenSelection, step: Step) -> None:
    """Raise ModelError for what cannot be done with the patches of a tower."""
    if selection.merged is not None and selection.merged.shape[1] != selection.keep.shape[1]:
        raise ModelError("tokens can be appended inside the LLM only")
    if selection.sequence is not None:
        raise ModelError(f"{step.stage}: patches can be put in another order before the LLM only")
    if selection.bias is not None:
        raise ModelError(f"{step.stage}: a bias on keys is for the layers of the LLM; leave it out inside the tower")
    if selection.heads is not None:
        raise ModelError("heads can keep different tokens in a cache only")
    if not bool(selection.there.all()):
        raise ModelError(f"{step.stage}: all pictures of a batch must keep equal numbers of patches inside the tower")
