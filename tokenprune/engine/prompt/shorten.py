"""Shorten the inputs of a multimodal model to the visual tokens that stay. Nothing here knows a model family.

A prompt is a (B, L) matrix of token ids in which each visual token has a placeholder. To drop a visual token is to take
its placeholder's column out of everything that is aligned with the ids; rows that lose different numbers of columns are
padded again. Visual tokens are counted in the order of their placeholders, row after row, as models do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenprune.adapters.inputs import PIXELS, real_tokens
from tokenprune.core.selection import TokenSelection
from tokenprune.core.stages import PRE_LLM, Stage
from tokenprune.engine.decoder.inside_plan import InsidePlan
from tokenprune.engine.prompt.encoders import names_of, without_pixels
from tokenprune.engine.prompt.layout import Choice, Layout


@dataclass(frozen=True, eq=False)
class PrunedInputs:
    """Inputs whose images are encoded and pruned; a session's ``generate`` and ``prefill`` take them.

    Attributes:
        inputs: keyword arguments of the model.
        chosen: what stayed before the LLM; empty if nothing was pruned there.
        kept: (T,) bool, which visual tokens of the batch entered the LLM.
        layout: of the visual tokens.
        seconds: of ``vision`` (tower and projector) and ``selection`` (signals, text tower and pruner) before the LLM.
        inside: what a session prunes inside the LLM while the model runs on these inputs; None if that is all done.
        early: stages before it, in the vision tower too, each with which visual tokens (T,) bool went on from it.
    """

    inputs: dict[str, Any]
    chosen: tuple[Choice, ...]
    kept: Tensor
    layout: Layout
    seconds: dict[str, float]
    inside: InsidePlan | None = None
    early: tuple[tuple[Stage, Tensor], ...] = ()

    @property
    def stage(self) -> Stage:
        """The last stage before the LLM."""
        return self.early[-1][0] if self.early else PRE_LLM

    @property
    def selection(self) -> TokenSelection | None:
        """What stayed before the LLM, a row for each unit; None if nothing was pruned or the units are unequal."""
        return self.chosen[0].selection if len(self.chosen) == 1 else None

    @property
    def entered(self) -> list[int]:
        """Of each batch row, how many of the visual tokens that a pruner may choose among entered the LLM."""
        layout = self.layout
        per_unit = [int(self.kept[unit].sum()) for unit in layout.units]
        totals = [0] * layout.batch
        for row, number in zip(layout.rows.tolist(), per_unit, strict=True):
            totals[row] += number
        return totals


def unpack(inputs: Mapping[str, Any] | PrunedInputs) -> tuple[Mapping[str, Any], InsidePlan | None]:
    """Keyword arguments of the model, and what is pruned inside the LLM while it runs on them."""
    return (inputs.inputs, inputs.inside) if isinstance(inputs, PrunedInputs) else (inputs, None)


COLUMN = "column"  # the number of each column of the prompt, for who wants to know which ones stay
FILL = {
    "attention_mask": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "position_ids": 0,
    "labels": -100,
    "shift_labels": -100,
    COLUMN: -1,
}


def as_tensors(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs as tensors: some of them models also take as lists or arrays, such as sizes of pictures.

    Lists of pixels of unlike shapes stay what they are.
    """
    ids, made = inputs["input_ids"], dict(inputs)
    encoders = {name for modality in PIXELS for name in names_of(model, modality, inputs)}
    for name in {*FILL, *(name for name in encoders if not name.startswith("vision_feature"))}:  # layers are no data
        if isinstance(value := inputs.get(name), list | tuple | np.ndarray):
            with suppress(ValueError, TypeError):
                made[name] = torch.as_tensor(np.asarray(value), device=ids.device)
    return made


def prune_prompt(
    model: Any,
    inputs: Mapping[str, Any],
    placeholder: Tensor,
    kept: Tensor,
    *,
    close: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
    pad_token_id: int,
) -> dict[str, Any]:
    """Inputs without pixels and without the placeholders of dropped visual tokens.

    Args:
        model: tells which inputs are pixels.
        inputs: with ``position_ids`` of the whole prompt.
        placeholder: (B, L) bool, where the visual tokens go.
        kept: (T,) bool, which of them stay.
        close: closes the gaps that dropped tokens leave in the position ids, see ``ModelAdapter.repacked``; None to
            leave them.
        pad_token_id: for rows that become shorter than others.
    """
    real, rest = real_tokens(inputs), without_pixels(model, inputs)
    if rest.get("attention_mask") is None:
        rest["attention_mask"] = real.long()
    rest["position_ids"] = inputs["position_ids"].expand(*inputs["position_ids"].shape[:-2], *real.shape)
    stay = real.clone()
    stay[placeholder] &= kept.to(real.device)
    if close is not None:
        rest["position_ids"] = close(rest["position_ids"], placeholder, real & ~stay)
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
    # Padding behind a row stays behind it, as what follows a prompt is counted from the end.
    behind = ~real & (real.flip(1).cumsum(1).flip(1) == 0) & (not padded_right)
    longest = int((stay | behind).sum(1).max())
    # A stable sort moves what leaves to one side and keeps the order of the rest.
    order = (~stay if padded_right else stay + 2 * behind).long().argsort(dim=1, stable=True)
    index = order[:, :longest] if padded_right else order[:, -longest:]
    valid = stay.gather(1, index)
    fill = {"input_ids": pad_token_id, **FILL}

    def take(value: Tensor, filler: int) -> Tensor:
        return value.gather(-1, index.expand(*value.shape[:-1], -1)).masked_fill(~valid, filler)

    shape = stay.shape[1]
    aligned = {name for name in fill if (x := inputs.get(name)) is not None and x.dim() > 1 and x.shape[-1] == shape}
    return {name: take(value, fill[name]) if name in aligned else value for name, value in inputs.items()}


def fresh(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A copy for one call: beam search replaces the visual tokens inside the encoder outputs that it is given."""
    copied = {kind: copy.copy(output) for kind, output in (inputs.get("mm_encoder_outputs") or {}).items()}
    return {**inputs, **({"mm_encoder_outputs": copied} if copied else {})}
