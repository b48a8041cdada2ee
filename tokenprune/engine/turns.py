"""Later turns of a conversation on a cache whose prompt was pruned.

The caller counts in whole prompts, while the cache holds shortened ones. A ``Turn`` holds both views of a prompt; from
its end on, one column of the caller is one column of the cache, so that one view can be translated into the other.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from tokenprune.adapters.cache_argument import CACHE
from tokenprune.core.errors import ModelError
from tokenprune.engine.decoder.inside_plan import HeldPrompt

COLUMNS = ("input_ids", "attention_mask", "position_ids")
TYPES = frozenset({"token_type_ids", "mm_token_type_ids"})
NOTE = "_tokenprune_note"  # attribute of a cache: the ``Note`` of what was pruned into it; copies have it, too


@dataclass(frozen=True, eq=False)
class Turn:
    """A pruned prompt.

    Attributes:
        ids: (B, L) the prompt as the caller knows it.
        shown: ``COLUMNS`` and ``TYPES`` as the model saw them, (B, L'); positions may have several axes, (A, B, L').
        images: (B,) long, images in each row.
        pixels: length of the ``pixel_values`` that they came in.
        inside: how much of it each layer holds; None if nothing was pruned inside the LLM.
    """

    ids: Tensor
    shown: Mapping[str, Tensor]
    images: Tensor
    pixels: int
    inside: HeldPrompt | None = None


@dataclass(eq=False)
class Note:
    """What a cache says of the prompt that was pruned into it. It is copied with the cache, as what it is.

    Attributes:
        turn: the prompt; None when the block has ended.
        block: weakly, what pruned it.
        lengths: columns in each layer, when it was filled.
        last: (B, H, d), the keys of the prompt's last column in the last layer, which depend on the whole prompt; None
            if the cache does not keep them.
    """

    turn: Turn | None
    block: weakref.ReferenceType[Any]
    lengths: Sequence[int]
    last: Tensor | None

    def __deepcopy__(self, memo: Any) -> Note:
        """The note itself: copies of a cache share it."""
        return self

    def __reduce__(self) -> Any:
        """Become None in another process, where nothing is open."""
        return type(None), ()

    def tells_of(self, cache: Any) -> bool:
        """Whether the cache holds the prompt still, and perhaps more."""
        if self.turn is None:
            return False
        lengths = _lengths(cache)
        if len({now - then for now, then in zip(lengths, self.lengths, strict=False)}) > 1:  # layers were cut apart
            return False
        last = _last_keys(cache, self.turn)
        if self.last is None or last is None:
            return int(cache.get_seq_length()) >= self.turn.shown["input_ids"].shape[1]
        return last.shape == self.last.shape and torch.equal(last, self.last.to(last.device))


def _last_keys(cache: Any, turn: Turn) -> Tensor | None:
    """Keys (B, H, d) of a prompt's last column in the last layer; None if they are not there."""
    storage, after = cache.layers[-1], int(cache.get_seq_length()) - turn.shown["input_ids"].shape[1]
    kind = type(storage)
    if after < 0 or kind not in (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer):
        return None
    keys: Tensor = storage.keys
    columns = int(storage.get_seq_length()) if kind is StaticLayer else keys.shape[-2]  # a window forgets
    return keys[:, :, columns - 1 - after] if columns > after else None


def _lengths(cache: Any) -> list[int]:
    return [int(storage.get_seq_length()) for storage in cache.layers]


def remember(turn: Turn, cache: Any, block: Any) -> Note:
    """Note on a cache which pruned prompt it holds."""
    last = _last_keys(cache, turn)
    note = Note(turn, weakref.ref(block), _lengths(cache), None if last is None else last.detach().clone())
    setattr(cache, NOTE, note)
    return note


def remembered(cache: Any, notes: Iterable[Note], block: Any) -> Turn | None:
    """The pruned prompt that a cache holds; None if it is empty, whatever it once held, or nothing is known of it.

    Args:
        cache: of a call, or None.
        notes: of caches that were filled in the block, for copies that carry no note.
        block: that is open.

    Raises:
        ModelError: if it holds a prompt that was pruned in another block, or one that was changed since.
    """
    if cache is None or not int(cache.get_seq_length()):
        if cache is not None and hasattr(cache, NOTE):
            delattr(cache, NOTE)
        return None
    note: Note | None = getattr(cache, NOTE, None)
    if note is None:
        return next((other.turn for other in notes if other.tells_of(cache)), None)
    if note.turn is None or note.block() is not block:
        raise ModelError(f"{CACHE} was not filled in this block; prune all turns of a conversation in one block")
    if not note.tells_of(cache):
        raise ModelError(
            f"{CACHE} does not hold the prompt any more that was pruned into it: it was cut, rows of it were chosen, "
            "or it was emptied and filled again outside of the block; begin with a new one"
        )
    return note.turn


def refuse_pruned(cache: Any) -> None:
    """Raise ModelError if a cache holds a prompt that was pruned: what follows must be pruned in the same block."""
    note = getattr(cache, NOTE, None)
    if note is not None and int(cache.get_seq_length()) and (note.turn is None or note.tells_of(cache)):
        raise ModelError(f"{CACHE} holds a pruned prompt; prune all turns of a conversation in one block")


def cached_text(
    inputs: Mapping[str, Any],
    placeholders: Callable[[Tensor], Tensor],
    positions: Callable[[Mapping[str, Any]], Tensor],
) -> Turn:
    """What a cache holds that was filled without images, as if it were a pruned prompt.

    Args:
        inputs: of the caller, with the cache.
        placeholders: tells where visual tokens go in ids.
        positions: numbers the whole prompt.

    Raises:
        ModelError: if the inputs do not tell, or there were images.
    """
    ids, cached = inputs["input_ids"], int(inputs[CACHE].get_seq_length())
    if ids.shape[1] <= cached or bool(placeholders(ids[:, :cached]).any()):
        raise ModelError(
            f"{CACHE} was not filled in this block, or by beams or several answers a prompt, and holds {cached} "
            "columns that input_ids do not show to be text; prune all turns of a conversation in one block, one answer "
            "each"
        )
    mask = inputs.get("attention_mask")
    whole = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids) if mask is None else mask,
        "position_ids": positions({**inputs, "position_ids": None}),
        **{name: inputs[name] for name in TYPES if inputs.get(name) is not None},
    }
    shown = {name: value[..., :cached] for name, value in whole.items()}
    return Turn(ids[:, :cached], shown, torch.zeros(len(ids), dtype=torch.long, device=ids.device), 0)


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
    if (
        generated < 0
        or inputs.get("position_ids") is not None
        or mask.shape != (len(turn.ids), length + generated + new)
    ):
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
    for name in [name for name in TYPES & turn.shown.keys() if inputs.get(name) is not None]:
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
