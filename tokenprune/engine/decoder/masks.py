"""Attention masks of layers that hold fewer tokens than the prompt has."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested

KINDS = {"sdpa": "bool", "eager": "additive"}


def mask_kind(implementation: str | None) -> str | None:
    """Which masks an attention implementation takes: ``bool``, ``additive``, ``padding``; None if it is not known."""
    if is_flash_attention_requested(requested_attention_implementation=implementation):
        return "padding"  # without the package, transformers takes a kernel of the hub, by that kernel's name
    return KINDS.get(implementation or "eager")


def narrow(mask: Tensor, slots: Tensor, valid: Tensor, *, doubled: bool) -> Tensor:
    """The mask of a prompt, cut to the tokens that a layer still sees; whatever structure it has is kept.

    Args:
        mask: (B or 1, 1, L, columns), bool or additive, on any device; columns beyond L are slots of a static cache.
        slots: (B, n) long, the tokens' columns in the prompt, ascending.
        valid: (B, n) bool, False for padding.
        doubled: several tokens may share a column; each then sees those before it only.

    Returns:
        (B, 1, n, columns - L + n or, with a static cache, columns).
    """
    mask, never = mask.to(slots.device), _never(mask)
    columns, (batch, length) = mask.shape[-1], slots.shape
    rows = mask.expand(batch, -1, -1, -1).gather(2, slots[:, None, :, None].expand(-1, 1, -1, columns))
    new = rows.gather(3, slots[:, None, None].expand(-1, 1, length, -1))
    hidden = ~valid[:, None, None]
    if doubled:
        later = torch.ones(length, length, dtype=torch.bool, device=slots.device).triu(1)
        hidden = hidden | ((slots[:, :, None] == slots[:, None]) & later)[:, None]
    new = new.masked_fill(hidden, never)
    spare = columns - length if columns > mask.shape[2] else 0
    return torch.nn.functional.pad(new, (0, spare), value=never) if spare else new


def build(
    kind: str,
    valid: Tensor,
    queries: int,
    past: int,
    dtype: torch.dtype,
    slots: Tensor | None = None,
    window: int | None = None,
) -> Tensor | None:
    """A causal mask over what a layer holds.

    Args:
        kind: of ``mask_kind``.
        valid: (B, columns) bool, False for padding; with a static cache, columns beyond past + queries are not filled.
        queries: new tokens.
        past: columns before them.
        dtype: of an additive mask.
        slots: (B, columns) long, where in the conversation the tokens are; needed with a window.
        window: see ``tap.Attended``.

    Returns:
        None if there is nothing to hide; (B, columns) bool if the kernel takes padding masks; else
        (B, 1, queries, columns).
    """
    columns = valid.shape[1]
    if kind == "padding":
        return None if bool(valid.all()) else valid
    column, row = torch.arange(columns, device=valid.device), torch.arange(queries, device=valid.device) + past
    allowed = (column <= row[:, None]) & valid[:, None]
    if window is not None and slots is not None:
        allowed = allowed & (slots[:, past : past + queries, None] - slots[:, None] < window)
    if kind == "bool":
        return allowed[:, None]
    hidden = ~allowed[:, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=valid.device).masked_fill(hidden, torch.finfo(dtype).min)


def biased(mask: Tensor | None, bias: Tensor, queries: int, past: int, dtype: torch.dtype) -> Tensor:
    """An additive mask that adds something to the attention logits of some keys.

    Args:
        mask: (B or 1, H or 1, queries, columns), bool or additive; None if attention is causal and hides nothing.
        bias: (B, columns or fewer) of the first keys; those after them get nothing.
        queries: new tokens.
        past: columns before them.
        dtype: of the mask.

    Returns:
        (B, H or 1, queries, columns).
    """
    if mask is None:
        everything = torch.ones(1, past + queries, dtype=torch.bool, device=bias.device)
        mask = build("bool", everything, queries, past, dtype)
    assert mask is not None
    if mask.dtype == torch.bool:
        lowest = torch.finfo(dtype).min
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, lowest)
    added = torch.nn.functional.pad(bias.to(mask), (0, mask.shape[-1] - bias.shape[1]))[:, None, None]
    return torch.where(mask == torch.finfo(mask.dtype).min, mask, mask + added)


def _never(mask: Tensor) -> float:
    return False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
