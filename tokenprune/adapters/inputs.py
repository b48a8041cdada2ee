"""Shorten the inputs of a multimodal model to the visual tokens that stay. Nothing here knows a model family.

A prompt is a (B, L) matrix of token ids in which each visual token has a placeholder. To drop a visual token is to take
its placeholder's column out of everything that is aligned with the ids; rows that lose different numbers of columns are
padded again. Visual tokens are counted in the order of their placeholders, row after row, as models do.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenprune.errors import ModelError
from tokenprune.types import TokenSelection

if TYPE_CHECKING:
    from tokenprune.adapters.hooks import InsideLLM


@dataclass(frozen=True, eq=False)
class Prepared:
    """Samples as a model takes them.

    Attributes:
        inputs: keyword arguments of the model, on its device.
        questions: of each batch row.
    """

    inputs: dict[str, Any]
    questions: list[str]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images after the vision tower and the projector; can be pruned many times.

    Attributes:
        output: of ``get_image_features``.
        features: (I, N, D) visual tokens.
        rows: (I,) long, the batch row of each image.
        ids: (I,) long, a hash of each image's pixels.
    """

    output: Any
    features: Tensor
    rows: Tensor
    ids: Tensor


@dataclass(frozen=True, eq=False)
class PrunedInputs:
    """Inputs whose images are encoded and pruned; an adapter's ``generate`` and ``prefill`` and the model take them.

    Attributes:
        inputs: keyword arguments of the model.
        selection: one row an image; None if nothing was pruned.
        rows: (I,) long, the batch row of each image.
        num_tokens: N, visual tokens of an image before pruning.
        seconds: of ``vision`` (tower and projector) and ``selection`` (signals, text tower and pruner) before the LLM.
        inside: prunes inside the LLM while the model runs on these inputs; None if that is all done.
    """

    inputs: dict[str, Any]
    selection: TokenSelection | None
    rows: Tensor
    num_tokens: int
    seconds: dict[str, float]
    inside: InsideLLM | None = None


def unpack(inputs: Mapping[str, Any] | PrunedInputs) -> tuple[Mapping[str, Any], InsideLLM | None]:
    """Keyword arguments of the model, and what prunes inside the LLM while it runs on them."""
    return (inputs.inputs, inputs.inside) if isinstance(inputs, PrunedInputs) else (inputs, None)


# Earlier versions lose the images, pruned or not, when the prompt goes through the LLM in chunks.
CHUNKS_WORK = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)
FILL = {"attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0, "position_ids": 0, "labels": -100}


def real_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """(B, L) bool, False for padding; all True if there is no ``attention_mask``.

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
    """Refuse prompts and images that cannot belong together; ``rows_of_images`` counts them later.

    Args:
        inputs: with ``input_ids``.
        placeholder: (B, L) bool, where the visual tokens go.

    Raises:
        ModelError: says why.
    """
    marked = bool(placeholder.any())
    if inputs.get("pixel_values") is None:
        prompt = "the prompt has image placeholders" if marked else "the prompt is text alone"
        raise ModelError(f"{prompt}, and no image is given")
    if not marked:
        raise ModelError("an image is given, but the prompt has no placeholder for it")
    if bool((placeholder & ~real_tokens(inputs)).any()):
        raise ModelError("attention_mask hides image placeholders; it may hide padding only")


def text_positions(real: Tensor) -> Tensor:
    """(B, L) position ids that number the real tokens of each row from 0; 0 for padding."""
    return (real.long().cumsum(1) - 1).masked_fill(~real, 0)


def encode_images(model: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
    """Run vision tower and projector as ``generate`` does; ``pooler_output`` of the result holds the visual tokens."""
    arguments = {name: inputs[name] for name in _pixel_names(model, inputs)}
    return model.base_model.get_image_features(**arguments, return_dict=True, **options)


def _pixel_names(model: Any, inputs: Mapping[str, Any]) -> list[str]:
    return [name for name in inspect.signature(model.base_model.get_image_features).parameters if name in inputs]


def rows_of_images(placeholder: Tensor, sizes: Sequence[int]) -> Tensor:
    """Which batch row each image belongs to.

    Args:
        placeholder: (B, L) bool, where the placeholders are.
        sizes: visual tokens of each image, in the order of the placeholders.

    Returns:
        (I,) long.

    Raises:
        ModelError: if the placeholders of a row are not those of a whole number of images.
    """
    per_row = placeholder.sum(1).cpu()
    ends = torch.tensor(sizes).cumsum(0)
    rows = torch.searchsorted(per_row.cumsum(0), ends).clamp(max=len(per_row) - 1)
    if not torch.equal(torch.zeros_like(per_row).index_add_(0, rows, torch.tensor(sizes)), per_row):
        raise ModelError(
            f"the prompts hold {per_row.tolist()} image placeholders (row by row), but the {len(sizes)} given images "
            f"have {list(sizes)} visual tokens; make prompts and images with one call of the model's own processor"
        )
    return rows.to(placeholder.device)


def prune_prompt(
    model: Any,
    inputs: Mapping[str, Any],
    placeholder: Tensor,
    selection: TokenSelection | None,
    *,
    repack: bool,
    pad_token_id: int,
) -> dict[str, Any]:
    """Inputs without pixels and without the placeholders of dropped visual tokens.

    Args:
        model: tells which inputs are pixels.
        inputs: with ``position_ids`` of the whole prompt.
        placeholder: (B, L) bool, where the visual tokens go.
        selection: of all images; None keeps everything.
        repack: close the gaps that dropped tokens leave in the position ids.
        pad_token_id: for rows that become shorter than others.
    """
    pixels = _pixel_names(model, inputs)
    real = real_tokens(inputs)
    rest = {name: value for name, value in inputs.items() if name not in pixels}
    rest["attention_mask"] = inputs.get("attention_mask", real.long())
    rest["position_ids"] = inputs["position_ids"].expand(*inputs["position_ids"].shape[:-2], *real.shape)
    if selection is None:
        return rest
    kept = torch.zeros(len(selection.keep), selection.num_tokens, dtype=torch.bool, device=real.device)
    stay = real.clone()
    stay[placeholder] &= kept.scatter_(1, selection.keep.to(real.device), True).flatten()
    if repack:
        rest["position_ids"] = rest["position_ids"] - (real & ~stay).long().cumsum(-1)
    return shorten(rest, stay, pad_token_id)


def shorten(inputs: Mapping[str, Any], stay: Tensor, pad_token_id: int) -> dict[str, Any]:
    """Keep only some columns of each row.

    Args:
        inputs: everything aligned with ``input_ids`` is shortened, the rest is left as it is.
        stay: (B, L) bool, False for what leaves and for padding.
        pad_token_id: for rows that become shorter than others; they are padded where the inputs were, else on the left.

    Returns:
        New inputs with (B, L') tensors, L' = most columns that stay in a row.
    """
    real = real_tokens(inputs)
    if torch.equal(stay, real):
        return dict(inputs)
    padded_right = bool(real[:, 0].all()) and not bool(real[:, -1].all())
    longest = int(stay.sum(1).max())
    # A stable sort moves what leaves to one side and keeps the order of the rest.
    order = (~stay if padded_right else stay).long().argsort(dim=1, stable=True)
    index = order[:, :longest] if padded_right else order[:, -longest:]
    valid = stay.gather(1, index)
    fill = {"input_ids": pad_token_id, **FILL}

    def take(value: Tensor, filler: int) -> Tensor:
        return value.gather(-1, index.expand(*value.shape[:-1], -1)).masked_fill(~valid, filler)

    return {name: take(value, fill[name]) if name in fill else value for name, value in inputs.items()}


def encoder_outputs(features: Tensor, selection: TokenSelection | None) -> dict[str, Any]:
    """The argument by which a model takes visual tokens instead of pixels.

    Args:
        features: (I, N, D).
        selection: which of them stay, or what the pruner merged into those that stay; None for all.

    Raises:
        ModelError: if the pruner appends tokens: the prompt has no placeholders for them.
    """
    if selection is not None and selection.merged is not None:
        if selection.merged.shape[1] != selection.keep.shape[1]:
            raise ModelError("tokens can be appended inside the LLM only")
        features = selection.merged.to(features.device, features.dtype)
    elif selection is not None:
        keep = selection.keep.to(features.device)
        features = features.gather(1, keep[..., None].expand(-1, -1, features.shape[-1]))
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(features))}}


def fresh(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A copy for one call: beam search replaces the visual tokens inside the encoder outputs that it is given."""
    copied = {kind: copy.copy(output) for kind, output in inputs.get("mm_encoder_outputs", {}).items()}
    return {**inputs, **({"mm_encoder_outputs": copied} if copied else {})}


def content_ids(pixels: Tensor) -> Tensor:
    """(I,) long: a 63-bit hash of each image's pixels, the same in whatever batch the image is.

    A weighted sum of the float32 bit patterns modulo 2**64: exact, hence the same on each device, without a copy to the
    host.
    """
    bits = pixels.detach().float().flatten(1).contiguous().view(torch.int32).long()
    weights = (2 * torch.arange(bits.shape[1], device=bits.device) + 1) * 0x9E3779B97F4A7C1
    return (bits * weights).sum(1) & 0x7FFF_FFFF_FFFF_FFFF
