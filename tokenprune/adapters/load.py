"""Load a checkpoint with its processor, checking all that can be checked before the weights are read."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from tokenprune.adapters.base import ModelAdapter, adapter_class
from tokenprune.errors import ConfigError, ModelError, hint

DTYPES = ("float32", "bfloat16", "float16", "float64")
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


def load_adapter(
    path: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str = "sdpa",
    text_tower: str | None = None,
) -> ModelAdapter:
    """Load a model by hub id or from a folder, as a user would, and wrap it.

    Args:
        path: hub id or folder of the checkpoint.
        dtype: of the weights.
        device: where to, such as ``cpu`` or ``cuda:1``.
        attention: implementation of attention in the LLM and the vision tower.
        text_tower: see ``ModelAdapter``.

    Raises:
        ConfigError: if dtype, device or attention are unknown, or do not go together.
        ModelError: if there is no such checkpoint, no adapter knows it, or it cannot be loaded.
    """
    place = _device(device)
    if attention not in ATTENTION:
        raise ConfigError(f"attention is {attention!r}; {hint(attention, ATTENTION)}")
    options = {"dtype": _dtype(dtype, place), "attn_implementation": attention}
    config = _load(AutoConfig, path)
    family = adapter_class(config.model_type)
    family.spec_from_config(config)  # refuses parts that the adapter does not know
    processor = _load(AutoProcessor, path)
    model = _load(AutoModelForImageTextToText, path, **options)
    return family(model.eval().to(place), processor, text_tower=text_tower)


def _load(kind: Any, path: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(path, **options)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"model {path!r} cannot be loaded: {reason}") from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        raise ConfigError(f"device {name!r} cannot be used here; use cpu{f' or {found}' if found else ''}") from None
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype is {name!r}; {hint(name, DTYPES)}")
    try:  # what a model does, in small
        x = torch.ones(1, 1, 4, 4, device=device).to(dtype)
        x = functional.conv2d(x, x).expand(1, 1, 4, 4)
        x = functional.gelu(functional.layer_norm(functional.linear(x, x[0, 0]), (4,)))
        functional.scaled_dot_product_attention(x, x, x)
    except (RuntimeError, NotImplementedError):
        raise ConfigError(f"{str(device)!r} cannot compute in dtype {name!r}; allowed: {', '.join(DTYPES)}") from None
    return dtype
