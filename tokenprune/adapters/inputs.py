"""What the inputs of a multimodal model must be like. Nothing here knows a model family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from tokenprune.adapters.cache_argument import CACHE
from tokenprune.core.errors import ModelError


@dataclass(frozen=True, eq=False)
class Prepared:
    """Samples as a model takes them.

    Attributes:
        inputs: keyword arguments of the model, on its device.
        questions: of each batch row.
    """

    inputs: dict[str, Any]
    questions: list[str]


# Earlier versions lose the images, pruned or not, when the prompt goes through the LLM in chunks.
CHUNKS_WORK = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
# By these, attention kernels tell apart several prompts in one row.
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


def real_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """Which tokens (B, L) bool are no padding; all if there is no ``attention_mask``.

    Raises:
        ModelError: if the mask does not have the prompt's shape.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.shape != ids.shape:
        raise ModelError(f"attention_mask must be {tuple(ids.shape)} as input_ids are, got {tuple(mask.shape)}")
    real: Tensor = mask.bool()
    return real


def check(inputs: Mapping[str, Any], placeholder: Tensor) -> None:
    """Refuse prompts and images that cannot belong together; ``engine.prompt.layout.place_items`` counts tokens later.

    Args:
        inputs: with ``input_ids``.
        placeholder: (B, L) bool, where the visual tokens go.

    Raises:
        ModelError: says why.
    """
    marked = bool(placeholder.any())
    if all(inputs.get(name) is None for name in PIXELS.values()):
        prompt = "the prompt has image placeholders" if marked else "the prompt is text alone"
        raise ModelError(f"{prompt}, and no image is given")
    if not marked:
        raise ModelError("an image is given, but the prompt has no placeholder for it")
    if bool((placeholder & ~real_tokens(inputs)).any()):
        raise ModelError("attention_mask hides image placeholders; it may hide padding only")


def check_one_prompt_a_row(inputs: Mapping[str, Any]) -> None:
    """Refuse rows of several prompts, as padding-free training packs them: a pruned row would become one prompt.

    Args:
        inputs: of a forward. Without a mask and a cache, transformers takes each place where the (text) position ids do
            not go on by one for the beginning of a prompt.

    Raises:
        ModelError: if there are several prompts in a row.
    """
    positions = inputs.get("position_ids")
    packed = any(inputs.get(name) is not None for name in PACKED)
    if positions is not None and inputs.get("attention_mask") is None and inputs.get(CACHE) is None:
        text = positions if positions.dim() == 2 else positions[0] if len(positions) == 4 else positions[:0]
        packed |= bool((text.diff(dim=-1) != 1).any())
    if packed:
        raise ModelError(
            "a row holds several prompts (packed or padding-free), which cannot be pruned; give each prompt a row of "
            "its own, with an attention_mask"
        )


def check_pixels(inputs: Mapping[str, Any], *leading: str, size: Sequence[int], modality: str = "image") -> None:
    """Raise ModelError unless pixels have the size that the vision tower was made for.

    Args:
        inputs: with pixels.
        *leading: names of their axes before the three colors.
        size: (height, width), pixels.
        modality: ``image`` or ``video``.
    """
    shape = tuple(inputs[PIXELS[modality]].shape)
    if len(shape) != len(leading) + 3 or shape[-2:] != tuple(size):
        wanted = ", ".join((*leading, "3", *map(str, size)))
        raise ModelError(f"{PIXELS[modality]} must be ({wanted}), got {shape}; use the model's own processor")


def text_positions(real: Tensor) -> Tensor:
    """Position ids (B, L) that number the real tokens of each row from 0; 0 for padding."""
    return (real.long().cumsum(1) - 1).masked_fill(~real, 0)


def no_new_images(placeholder: Tensor) -> Tensor:
    """Zeros (B,) for a later turn of a model whose images have any number of tokens.

    Args:
        placeholder: (B, L) bool, where its visual tokens would go.

    Raises:
        ModelError: if there are any.
    """
    if bool(placeholder.any()):
        raise ModelError("a later turn cannot bring images whose number of tokens varies; give them all at first")
    return placeholder.sum(1)
