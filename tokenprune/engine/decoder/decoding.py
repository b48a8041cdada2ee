"""Forwards after the prompt's, by an LLM whose layers hold prompts of different lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from tokenprune.core.errors import ModelError
from tokenprune.engine.decoder.alive import Alive
from tokenprune.engine.decoder.masks import biased, build
from tokenprune.engine.decoder.rotation import Rotations

Arguments = dict[str, Any]


class Decoding:
    """One forward of new tokens.

    Args:
        decoder: the LLM.
        kind: of the masks that its attention takes.
        cache: filled by a ``Prefill`` and by such forwards.
        layers: what each layer holds of the prompt.
        columns: of the prompt.
        tail: (B, columns after the prompt) bool, False for padding; None if nothing there is padded.
        windows: of each layer, see ``windows_of``.
    """

    def __init__(
        self,
        decoder: Any,
        kind: str,
        cache: Any,
        layers: Mapping[int, Alive],
        columns: int,
        tail: Tensor | None,
        windows: Sequence[int | None],
    ) -> None:
        self.kind, self.cache, self.layers = kind, cache, layers
        self.columns, self.tail, self.windows = columns, tail, windows
        self.past = int(cache.get_seq_length()) - columns  # tokens after the prompt, by the first layer
        self.rotations = Rotations(decoder.rotary_emb)
        self.heads = decoder.config.num_attention_heads
        self.stack = None  # nothing is added to what is decoded
        self._memo: dict[Any, Any] = {}

    def note(self, what: Any) -> None:
        """Note nothing, as nothing is selected in decoding."""

    def finish(self, output: Any) -> None:
        """Leave the output as it is, as nothing was shortened."""

    def idle(self, index: int, arguments: Arguments) -> bool:
        """Whether a layer's arguments are right as they are: one token, nothing padded, positions of the prompt."""
        held = self.layers[index]
        alone = arguments.get("attention_mask") is None and arguments["hidden_states"].shape[1] == 1
        return alone and held.closed is None and held.bias is None and not held.padded

    def enter(self, index: int, layer: Any, arguments: Arguments) -> Arguments:
        """The arguments of a layer, for what it holds."""
        held, storage = self.layers[index], self.cache.layers[index]
        if held.closed is not None:
            arguments = {**arguments, "position_embeddings": self._rotation(held, arguments)}
        if arguments.get("position_ids") is not None:  # see Prefill: gaps would be taken for packed sequences
            arguments = {**arguments, "position_ids": self._new(arguments["hidden_states"])}
        window = self.windows[index]
        key = ("mask", id(held), window, storage.is_sliding)
        if key not in self._memo:
            self._memo[key] = self._heads(held, self._mask(held, storage, arguments["hidden_states"], window))
        return {**arguments, "attention_mask": self._memo[key]}

    def _new(self, hidden: Tensor) -> Tensor:
        key = ("new", hidden.device)
        if key not in self._memo:
            self._memo[key] = torch.arange(hidden.shape[1], device=hidden.device)[None]
        positions: Tensor = self._memo[key]
        return positions

    def _rotation(self, held: Alive, arguments: Arguments) -> Any:
        given = arguments["position_embeddings"]
        key = ("rotation", id(held), id(given[0]))
        if key not in self._memo:
            positions = self.rotations.positions
            shift = held.shift[:: held.copies, None].to(positions.device)
            self._memo[key] = self.rotations.at(positions - shift, given)
        return self._memo[key]

    def _heads(self, held: Alive, mask: Tensor | None) -> Tensor | None:
        """The mask of each query head, of one that has a row for each key-value head of a prompt."""
        if mask is None or held.copies == 1:
            return mask
        mask = rearrange(mask, "(b g) 1 q k -> b g q k", g=held.copies)
        return mask.repeat_interleave(self.heads // held.copies, 1)

    def _mask(self, held: Alive, storage: Any, hidden: Tensor, window: int | None) -> Tensor | None:
        """The mask over what the layer held before this forward, and the new tokens; a row for each row of ``held``."""
        batch, new = len(hidden) * held.copies, hidden.shape[1]
        prompt, written = held.valid.shape[1], int(storage.get_seq_length())
        later = self.past + new  # columns after the prompt
        if written != prompt + self.past:
            raise ModelError("the cache was cut in a way that its layers of different lengths do not agree on")
        columns, past = storage.get_mask_sizes(new)[0], written
        plain = window is None and not storage.is_sliding and columns == prompt + later
        if plain and new == 1 and self.tail is None and held.bias is None and not held.padded:
            return None
        tail = torch.ones(batch, later, dtype=torch.bool, device=hidden.device)
        if self.tail is not None:
            tail[:, -self.tail.shape[1] :] = self.tail.to(hidden.device).repeat_interleave(held.copies, 0)
        valid = torch.cat([held.valid.to(hidden.device), tail], 1)
        slots = torch.arange(self.columns, self.columns + later, device=hidden.device).expand(batch, -1)
        slots = torch.cat([held.slots.to(hidden.device), slots], 1)
        bias = None if held.bias is None else held.bias.to(hidden.device)
        if storage.is_sliding:
            bias = None if bias is None else pad(bias, (0, later))[:, -columns:]
            valid, slots, past = valid[:, -columns:], slots[:, -columns:], columns - new
        elif columns > valid.shape[1]:  # a static cache
            valid = pad(valid, (0, columns - valid.shape[1]), value=True)
            slots = pad(slots, (0, columns - slots.shape[1]))
        mask = build(self.kind, valid, new, past, hidden.dtype, slots, window)
        return mask if bias is None else biased(mask, bias, new, past, hidden.dtype)


def windows_of(config: Any, layers: int) -> list[int | None]:
    """Keys that each layer's queries see, themselves included; None for all."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    return [window if kinds is None or kinds[layer] == "sliding_attention" else None for layer in range(layers)]
