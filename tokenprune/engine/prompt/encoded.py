"""Images and videos after the vision tower and the projector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenprune.adapters.inputs import PIXELS
from tokenprune.core.signals import Signal
from tokenprune.engine.prompt.encoders import encode_items
from tokenprune.engine.prompt.layout import Layout, place_items
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
    """

    outputs: dict[str, Any]
    features: Tensor
    tokens: tuple[Tensor, ...]
    members: dict[str, list[int]]
    layout: Layout
    pictures: tuple[Pictures | None, ...] = ()
    made: dict[Any, Tensor] = field(default_factory=dict)

    def in_order(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Put what each modality has of its tokens in the order of the placeholders, (T, ...)."""
        if len(parts) == 1:
            return next(iter(parts.values()))
        numbers = torch.cat([self.tokens[item] for modality in parts for item in self.members[modality]])
        whole = torch.cat(list(parts.values()))
        return whole[numbers.argsort().to(whole.device)]


def encode(adapter: ModelAdapter, inputs: Mapping[str, Any], requires: frozenset[Signal]) -> Encoded:
    """Run the vision tower and the projector on pixels, for ``Session.encode``."""
    adapter.check_inputs(inputs)
    # Transformers keeps only the hidden state that the projector reads, unless asked for all.
    options = {"output_hidden_states": True} if any(signal.reads_layers for signal in requires) else {}
    given = [name for name, pixels in PIXELS.items() if inputs.get(pixels) is not None]
    return _arrange(adapter, inputs, {name: encode_items(adapter.model, name, inputs, **options) for name in given})


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
