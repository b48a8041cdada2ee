"""Images and videos after the vision tower and the projector."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenprune.adapters.inputs import PIXELS
from tokenprune.core.signals import Signal
from tokenprune.core.stages import Stage
from tokenprune.engine.prompt.encoders import encode_items
from tokenprune.engine.prompt.layout import Layout, place_items
from tokenprune.engine.tower.encode import TowerPlan, encode_pruned
from tokenprune.engine.tower.forward import TowerForward
from tokenprune.engine.tower.left import PatchesLeft
from tokenprune.towers.pictures import Pictures

if TYPE_CHECKING:
    from tokenprune.adapters.base import ModelAdapter


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images and videos after the vision tower and the projector; can be pruned many times.

    Attributes:
        outputs: of ``get_image_features`` and ``get_video_features``, by modality.
        features: (T, D) visual tokens of the batch, in the order of their placeholders.
        tokens: (n,) long for each image or video, the numbers of its tokens.
        members: which of these belong to each modality.
        layout: the rows that pruners choose among.
        pictures: of each image or video, as other encoders can see it; None if that is not known.
        made: signals that were computed of it so far, by what they depend on, for the next pruner.
        patches: of each modality, what is left behind stages inside the vision tower; none if there are no such stages.
        early: stages inside the tower, each with which visual tokens (T,) bool went on from it; others have features 0.
        labels: (T,) long, what these stages handed on about visual tokens, -1 if nothing; None if they did not.
        seconds: that selections inside the tower took.
    """

    outputs: dict[str, Any]
    features: Tensor
    tokens: tuple[Tensor, ...]
    members: dict[str, list[int]]
    layout: Layout
    pictures: tuple[Pictures | None, ...] = ()
    made: dict[Any, Tensor] = field(default_factory=dict)
    patches: Mapping[str, PatchesLeft] = field(default_factory=dict)
    early: tuple[tuple[Stage, Tensor], ...] = ()
    labels: Tensor | None = None
    seconds: float = 0.0

    @property
    def history(self) -> tuple[int, ...]:
        """How many visual tokens of a picture arrived at each stage inside the tower."""
        return next((left.history[:-1] for left in self.patches.values()), ())

    @property
    def there(self) -> Tensor:
        """Which visual tokens (T,) bool came out of the vision tower."""
        return self.early[-1][1] if self.early else torch.ones_like(self.layout.free)

    def at_all_patches(self, modality: str, x: Tensor) -> Tensor:
        """Something that each patch has where it was computed, at the places of all: 0 where patches had left."""
        return self.patches[modality].spread(x) if modality in self.patches else x

    def in_order(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Put what each modality has of its tokens in the order of the placeholders, (T, ...)."""
        if len(parts) == 1:
            return next(iter(parts.values()))
        numbers = torch.cat([self.tokens[item] for modality in parts for item in self.members[modality]])
        whole = torch.cat(list(parts.values()))
        return whole[numbers.argsort().to(whole.device)]


def encode(
    adapter: ModelAdapter, inputs: Mapping[str, Any], requires: frozenset[Signal], plan: TowerPlan | None = None
) -> Encoded:
    """Run the vision tower and the projector on pixels, for ``Session.encode``.

    Args:
        adapter: of the model.
        inputs: of the model.
        requires: signals that are made of the output.
        plan: what leaves inside the tower; None if nothing does.
    """
    adapter.check_inputs(inputs)
    # Transformers keeps only the hidden state that the projector reads, unless asked for all.
    options = {"output_hidden_states": True} if any(signal.reads_layers for signal in requires) else {}
    outputs, forwards = {}, {}
    for name in (name for name, pixels in PIXELS.items() if inputs.get(pixels) is not None):
        encoder = functools.partial(encode_items, adapter.model, name, inputs, **options)
        if plan is None:
            outputs[name] = encoder()
        else:
            outputs[name], forwards[name] = encode_pruned(adapter, plan, list(requires), encoder)
    encoded = _arrange(adapter, inputs, outputs)
    return encoded if plan is None else _after_stages(adapter, inputs, encoded, plan, forwards)


def _after_stages(
    adapter: ModelAdapter,
    inputs: Mapping[str, Any],
    encoded: Encoded,
    plan: TowerPlan,
    forwards: Mapping[str, TowerForward],
) -> Encoded:
    """Encoded images with what is left of them behind the stages inside the tower."""
    early = []
    for step in plan.steps:
        parts = {}
        for name, forward in forwards.items():
            kept = forward.left.stages[step.stage]
            patches = forward.left.spread(torch.ones_like(kept)[..., None])
            parts[name] = adapter.per_token(name, patches, inputs)[:, 0] > 0
        early.append((step.stage, encoded.in_order(parts).to(encoded.layout.free.device)))
    left = {name: forward.left for name, forward in forwards.items()}
    said = {name: forward.labels for name, forward in forwards.items() if forward.labels is not None}
    labels = None
    if said:  # shifted by one, as patches that left have 0
        shifted = {name: left[name].spread(1 + each[..., None]) for name, each in said.items()}
        labels = encoded.in_order({name: adapter.per_token(name, x, inputs)[:, 0] - 1 for name, x in shifted.items()})
    seconds = sum(forward.seconds["selection"] for forward in forwards.values())
    return replace(encoded, patches=left, early=tuple(early), labels=labels, seconds=seconds)


def _arrange(adapter: ModelAdapter, inputs: Mapping[str, Any], outputs: dict[str, Any]) -> Encoded:
    """Give each visual token its number in the batch, whichever modality it is of."""
    placeholder, found = adapter.placeholders(inputs["input_ids"]), []
    for name, output in outputs.items():
        own, items = adapter.placeholders(inputs["input_ids"], name), adapter.items(name, output, inputs)
        numbers = own[placeholder].nonzero()[:, 0]
        places = place_items(own, [len(item.features) for item in items])
        found += [(int(numbers[at[0]]), name, item, numbers[at]) for item, at in zip(items, places, strict=True)]
    found.sort(key=lambda each: each[0])
    tokens = tuple(numbers for *_, numbers in found)
    members = {name: [index for index, each in enumerate(found) if each[1] == name] for name in outputs}
    layout = Layout.of([item for _, _, item, _ in found], tokens, placeholder)
    features = {name: torch.cat([found[index][2].features for index in members[name]]) for name in outputs}
    encoded = Encoded(
        outputs, placeholder.new_empty(0), tokens, members, layout, tuple(each[2].pictures for each in found)
    )
    return replace(encoded, features=encoded.in_order(features))
