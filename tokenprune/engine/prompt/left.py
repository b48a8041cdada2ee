"""What goes on to the LLM of images from which a pruner chose."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.core.errors import ModelError
from tokenprune.core.selection import TokenSelection
from tokenprune.engine.prompt.encoded import Encoded
from tokenprune.engine.prompt.layout import Choice, Layout, kept_tokens


@dataclass(frozen=True, eq=False)
class Left:
    """What goes on to the LLM.

    Attributes:
        encoded: the images.
        kept: (T,) bool, which visual tokens do.
        chosen: what the pruner chose; of tokens in none all go on as they are.
    """

    encoded: Encoded
    kept: Tensor
    chosen: tuple[Choice, ...] = ()

    @classmethod
    def all(cls, encoded: Encoded) -> Left:
        """All visual tokens that came out of the vision tower, none of them changed."""
        return cls(encoded, encoded.there)

    @classmethod
    def of(cls, encoded: Encoded, chosen: Sequence[Choice], dropped: Sequence[int]) -> Left:
        """Visual tokens that a pruner chose.

        Raises:
            ModelError: if it appends tokens: the prompt has no placeholders for them.
        """
        for selection in (choice.selection for choice in chosen):
            if selection.merged is not None and selection.merged.shape[1] != selection.keep.shape[1]:
                raise ModelError("tokens can be appended inside the LLM only")
            if selection.heads is not None:
                raise ModelError("heads can keep different tokens in a cache only")
        return cls(encoded, kept_tokens(encoded.layout, chosen, dropped) & encoded.there, tuple(chosen))

    def moved(self, x: Tensor) -> Tensor:
        """Something that each visual token has (T, ...), as it goes on: folded, and in the order of the prompt.

        Args:
            x: before; what leaves keeps what it has.
        """
        for choice in self.chosen:
            selection = choice.selection
            if selection.into is not None or selection.sequence is not None:
                tokens = torch.stack([self.encoded.layout.units[unit] for unit in choice.units]).to(x.device)
                x = _put(x, tokens, selection, selection.apply(x[tokens]))
        return x

    @functools.cached_property
    def features(self) -> Tensor:
        """Features (T, D) of visual tokens as they go on, with what the pruner made of them."""
        features = self.moved(self.encoded.features)
        for choice in self.chosen:
            if choice.selection.merged is not None:
                tokens = torch.stack([self.encoded.layout.units[unit] for unit in choice.units]).to(features.device)
                features = _put(features, tokens, choice.selection, choice.selection.merged)
        return features

    def encoder_outputs(self, adapter: ModelAdapter) -> dict[str, Any]:
        """The argument by which a model takes visual tokens instead of pixels."""
        outputs, features = {}, self.features
        for modality, output in self.encoded.outputs.items():
            tokens = [self.encoded.tokens[item] for item in self.encoded.members[modality]]
            kept = [self.kept[each] for each in tokens]
            left = [each[stay].to(features.device) for each, stay in zip(tokens, kept, strict=True)]
            moved = adapter.aligned(output, functools.partial(self._moved_of, torch.cat(tokens)))
            outputs[modality] = adapter.shortened(moved, [features[each] for each in left], kept)
        return {"mm_encoder_outputs": outputs}

    def _moved_of(self, tokens: Tensor, x: Tensor) -> Tensor:
        """What ``moved`` does, for some of the tokens, (t, ...)."""
        if all(choice.selection.into is None and choice.selection.sequence is None for choice in self.chosen):
            return x
        place = tokens.to(x.device)
        whole = x.new_zeros(len(self.kept), *x.shape[1:])
        whole[place] = x
        return self.moved(whole)[place]


def handed_on(
    layout: Layout, chosen: Sequence[Choice], name: str, empty: float, before: Tensor | None = None
) -> Tensor | None:
    """What choices say about the tokens that stay, (T,); None if they say nothing.

    Args:
        layout: of the batch.
        chosen: what stays of units.
        name: ``bias`` or ``labels`` of ``TokenSelection``.
        empty: of tokens about which nothing is said.
        before: (T,) what was said by earlier stages; None if nothing was.
    """
    x = before
    for choice in chosen:
        value: Tensor | None = getattr(choice.selection, name)
        if value is not None:
            x = torch.full(layout.free.shape, empty, dtype=value.dtype, device=value.device) if x is None else x
            tokens = torch.stack([layout.units[unit] for unit in choice.units]).to(x.device)
            x = _put(x, tokens, choice.selection, value)
    return x


def reordered(layout: Layout, chosen: Sequence[Choice], x: Tensor) -> Tensor:
    """Something that each visual token has (T,), at the place where the token enters the prompt."""
    for choice in chosen:
        if choice.selection.sequence is not None:
            tokens = torch.stack([layout.units[unit] for unit in choice.units]).to(x.device)
            own = x[tokens].gather(1, choice.selection.keep.clamp(min=0).to(x.device))
            x = _put(x, tokens, choice.selection, own)
    return x


def _put(x: Tensor, tokens: Tensor, selection: TokenSelection, values: Tensor) -> Tensor:
    """``x`` (T, ...) with the values (G, K, ...) of what stays of some tokens (G, N), in the order of the prompt."""
    device = x.device
    keep, there = selection.keep.clamp(min=0).to(device), selection.there.to(device)
    if selection.sequence is not None:
        where = torch.searchsorted(torch.where(there, keep, selection.num_tokens), selection.sequence.to(device))
        where = where.clamp(max=keep.shape[1] - 1).view(*where.shape, *[1] * (values.dim() - 2))
        values = values.to(device).gather(1, where.expand(*where.shape[:2], *values.shape[2:]))
    places = tokens.gather(1, keep)[there]
    return x.index_put((places,), values.to(x)[there])
