"""Later turns of a conversation on a cache whose prompt was pruned.

The caller counts in whole prompts, while the cache holds shortened ones. A ``Turn`` holds both views of a prompt; from
its end on, one column of the caller is one column of the cache, so that one view can be translated into the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.hooks import InsideLLM
from tokenprune.errors import ModelError

COLUMNS = ("input_ids", "attention_mask", "position_ids")
TYPES = frozenset({"token_type_ids", "mm_token_type_ids"})


@dataclass(frozen=True, eq=False)
class Turn:
    """A pruned prompt.

    Attributes:
        ids: (B, L) the prompt as the caller knows it.
        shown: ``COLUMNS`` and ``TYPES`` as the model saw them, (B, L'); positions may have several axes, (A, B, L').
        images: (B,) long, images in each row.
        pixels: length of the ``pixel_values`` that they came in.
        inside: what pruned it inside the LLM, and knows how much of it each layer holds; None if nothing did.
    """

    ids: Tensor
    shown: Mapping[str, Tensor]
    images: Tensor
    pixels: int
    inside: InsideLLM | None = None


def split_at_cache(turn: Turn, inputs: Mapping[str, Any], cached: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the cache holds and what is new, as the model sees it; visual tokens in the new part are not pruned yet.

    Args:
        turn: the last prompt that was pruned into the cache.
        inputs: of the caller: ``input_ids`` of the conversation from its beginning or of the new tokens alone, and in
            both cases the ``attention_mask`` of the whole, which may be left out if nothing is padded.
        cached: columns that the cache holds.

    Returns:
        ``COLUMNS`` of the cached part, where ``input_ids`` lacks the generated tokens if the caller did not give them,
        and of the new part; ``TYPES`` too if both turns have them.

    Raises:
        ModelError: if the inputs do not continue the conversation in the cache.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    length, shown = turn.ids.shape[1], turn.shown["input_ids"].shape[1]
    generated = cached - shown
    whole = ids.shape[1] > length + generated and torch.equal(ids[:, :length], turn.ids)
    tail = ids[:, length:] if whole else ids
    new = tail.shape[1] - generated if whole else tail.shape[1]
    if mask is None:
        mask = torch.ones(len(ids), length + generated + new, dtype=torch.long, device=ids.device)
    if generated < 0 or "position_ids" in inputs or mask.shape != (len(turn.ids), length + generated + new):
        raise ModelError(
            "the inputs do not continue the conversation in the cache: give input_ids of the whole, beginning "
            "with the pruned prompt, or of what is new, with the attention_mask of the whole and without position_ids"
        )
    mask = mask[:, length:]
    last = (turn.shown["position_ids"] * turn.shown["attention_mask"]).amax(-1, keepdim=True)
    if last.dim() == 3:  # several axes: the first counts tokens, and text is at the same place on all others
        last[1:] = last[1:].amax(0)
    positions = (last + mask.long().cumsum(1)).masked_fill(mask == 0, 0)
    columns = {"input_ids": tail[:, : generated if whole else 0], "attention_mask": mask, "position_ids": positions}
    for name in TYPES & inputs.keys() & turn.shown.keys():
        types = inputs[name][..., -new:]
        columns[name] = torch.nn.functional.pad(types, (generated, 0))  # what was generated is text
    known = {name: torch.cat([turn.shown[name], column[..., :generated]], -1) for name, column in columns.items()}
    fresh = {name: column[..., generated:] for name, column in columns.items()} | {"input_ids": tail[:, -new:]}
    return known, fresh


def new_images(turn: Turn, pixels: Tensor | None, added: Tensor) -> Tensor | None:
    """Pixels of the images that are not in the cache; None if there are none.

    Args:
        turn: the last prompt that was pruned into the cache.
        pixels: (I, ...) of the new images, or of all images of the conversation, row after row; if there are new ones,
            one for each image.
        added: (B,) long, new images in each row.
    """
    if pixels is None or len(pixels) != turn.pixels + int(added.sum()):
        return pixels
    numbers = torch.stack([turn.images, added], 1).flatten()
    new = torch.tensor([False, True], device=numbers.device).repeat(len(added)).repeat_interleave(numbers)
    return pixels[new.to(pixels.device)] if bool(new.any()) else None


def no_new_images(placeholder: Tensor) -> Tensor:
    """(B,) zeros for a later turn of a model whose images have any number of tokens.

    Args:
        placeholder: (B, L) bool, where its visual tokens would go.

    Raises:
        ModelError: if there are any.
    """
    if bool(placeholder.any()):
        raise ModelError("a later turn cannot bring images whose number of tokens varies; give them all at first")
    return placeholder.sum(1)
