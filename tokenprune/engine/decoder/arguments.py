"""Arguments of decoders and their layers, by name, whatever wraps them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

Arguments = dict[str, Any]


def valid_tokens(mask: Any, embeds: Tensor) -> Tensor:
    """Which tokens of a prompt (B, L) bool are real, from whatever mask the LLM is given."""
    while isinstance(mask, dict):  # one for each type of layer
        mask = next(iter(mask.values()))
    batch, length = embeds.shape[:2]
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=embeds.device)
    if mask.dim() == 4:  # each real token sees itself
        seen = mask if mask.dtype == torch.bool else mask == 0
        mask = seen[:, 0, :, :length].diagonal(dim1=1, dim2=2)
    valid: Tensor = mask.bool().expand(batch, -1)
    return valid


# Of the forward of each class. Compiled layers do not take functools.cache.
_PARAMETERS: dict[Any, tuple[str, ...]] = {}
WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")  # of torch's wrappers, whose own forward takes anything


def _parameters(kind: Any) -> tuple[str, ...]:
    if kind not in _PARAMETERS:
        _PARAMETERS[kind] = tuple(inspect.signature(kind.forward).parameters)[1:]
    return _PARAMETERS[kind]


def named(module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
    """The arguments of a module's forward by name."""
    inner = next((module._modules[name] for name in WRAPPED if name in module._modules), module)
    kind: Any = type(inner)
    return {**dict(zip(_parameters(kind), args, strict=False)), **kwargs} if args else kwargs
