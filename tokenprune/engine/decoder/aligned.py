"""Arguments of a layer that are aligned with its tokens: masks and position embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.decoder.alive import Alive
from tokenprune.engine.decoder.masks import biased, build, narrow
from tokenprune.engine.decoder.rotation import Pair, Rotations

Arguments = dict[str, Any]


def aligned(alive: Alive, arguments: Arguments, kind: str, rotations: Rotations) -> Arguments:
    """The arguments of a layer that are aligned with some tokens of the prompt.

    Args:
        alive: the tokens.
        arguments: of the layer, for the whole prompt.
        kind: of the masks that its attention takes.
        rotations: of the forward.
    """
    hidden = arguments["hidden_states"]
    positions = torch.arange(alive.slots.shape[1], device=hidden.device)[None]
    return {
        "attention_mask": _mask(alive, arguments.get("attention_mask"), kind, hidden.dtype),
        "position_embeddings": _rotation(alive, arguments["position_embeddings"], rotations),
        # The embeddings are all that positions are for; kernels would take gaps in them for packed sequences.
        **({"position_ids": positions} if arguments.get("position_ids") is not None else {}),
    }


def _mask(alive: Alive, given: Tensor | None, kind: str, dtype: torch.dtype) -> Tensor | None:
    key = ("mask", id(given))
    if key not in alive.memo:
        tokens = alive.slots.shape[1]
        if given is not None and given.dim() == 4:
            mask = narrow(given, alive.slots, alive.valid, doubled=alive.appended)
        elif given is None and not alive.padded:
            mask = None
        else:
            mask = build(kind, alive.valid, tokens, 0, dtype)
        if alive.bias is not None:
            mask = biased(mask, alive.bias, tokens, 0, dtype)
        alive.memo[key] = mask, given  # with what the id is of, so that it stays that
    kept: Tensor | None = alive.memo[key][0]
    return kept


def _rotation(alive: Alive, given: Pair, rotations: Rotations) -> Pair:
    key = ("rotation", id(given[0]))
    if key not in alive.memo:
        if alive.closed is None:
            rotation = (alive.gather(given[0]), alive.gather(given[1]))
        else:
            rotation = rotations.at(alive.positions(rotations.positions), given)
        alive.memo[key] = rotation, given
    kept: Pair = alive.memo[key][0]
    return kept
