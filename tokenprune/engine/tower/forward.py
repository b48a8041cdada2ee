"""A forward of a vision tower between whose layers patches leave."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenprune.core.errors import ModelError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal, TowerAttention, TowerLogits
from tokenprune.core.stages import Stage, tower
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
        bias: (I, n), what layers add to the logits of the patches that are left, as keys; None: nothing.
        made: (I, L, V) hidden states that the MLP of the layer that runs is given, if something left behind its
            attention, and what the MLP gives for them, once it has run.
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
    bias: Tensor | None = None
    made: tuple[Tensor, ...] = ()
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
        if (place := self._place(tower(index))) is not None:
            if index in self.remembers:
                self.hidden_states[index] = hidden  # as it arrives, for what selects
            hidden = self._shorten(place, hidden)
        bias = None if self.bias is None else pad(self.bias, (hidden.shape[1] - self.bias.shape[1], 0)).to(hidden)
        aligned = self.tower.aligned(arguments, self.kept, bias)
        if index in self.remembers:
            self.hidden_states[index], self.arguments[index] = hidden, aligned
        return hidden, aligned

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attended(self, index: int, hidden: Tensor) -> Tensor:
        """What the MLP of a layer is given, of the hidden states (I, L, V) behind its attention."""
        place = self._place(tower(index, after="attention"))
        assert place is not None  # as the hook is on the layers of such stages
        left = self._shorten(place, hidden)
        self.made = () if left is hidden else (left,)
        return left

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def passed(self, output: Tensor, number: int) -> Tensor:
        """What an MLP gives (I, L, V), with zeros behind it for a layer that has not lost any of its tokens."""
        if not self.made:
            return output
        self.made = (self.made[0], output)
        return pad(output, (0, 0, 0, number - output.shape[1]))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def leave(self, index: int, output: Tensor) -> Tensor:
        """The output (I, L, V) of a layer behind whose attention patches may have left."""
        if tower(index, after="attention") not in self.left.stages:
            raise ModelError(f"layer {index} of the tower ran without its hooks, as it was compiled; leave it as it is")
        made, self.made = self.made, ()
        return made[0] + made[1] if made else output

    def _place(self, stage: Stage) -> int | None:
        """Which step is at a stage; None if none is."""
        return next((place for place, step in enumerate(self.steps) if step.stage == stage), None)

    def _shorten(self, place: int, hidden: Tensor) -> Tensor:
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
        self.left.stages[self.steps[place].stage] = alive
        self.labels = _handed_on(selection, selection.labels, self.labels)
        self.bias = _handed_on(selection, selection.bias, self.bias)
        if selection.bias is not None:
            self.tower.check_bias(self.model)
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
            check_unbiased(self.bias, signal)
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


def check_unbiased(bias: Tensor | None, signal: Signal) -> None:
    """Raise ModelError for attention that is read where keys have a bias, which what is read would lack."""
    if bias is not None and isinstance(signal, TowerAttention | TowerLogits):
        raise ModelError(
            f"{signal.plain} cannot be read behind a stage that puts a bias on keys; leave one of both out"
        )


def _handed_on(selection: TokenSelection, said: Tensor | None, before: Tensor | None) -> Tensor | None:
    """What later stages or layers get of the patches that stay, (I, n): what was said last."""
    if said is not None or before is None:
        return said
    return before.gather(1, selection.keep.to(before.device))


def _check(selection: TokenSelection, step: Step) -> None:
    """Raise ModelError for what cannot be done with the patches of a tower."""
    if selection.merged is not None and selection.merged.shape[1] != selection.keep.shape[1]:
        raise ModelError("tokens can be appended inside the LLM only")
    if selection.sequence is not None:
        raise ModelError(f"{step.stage}: patches can be put in another order before the LLM only")
    if selection.heads is not None:
        raise ModelError("heads can keep different tokens in a cache only")
    if not bool(selection.there.all()):
        raise ModelError(f"{step.stage}: all pictures of a batch must keep equal numbers of patches inside the tower")
