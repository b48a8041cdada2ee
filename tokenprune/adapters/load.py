"""Load a checkpoint with its processor, checking all that can be checked before the weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.known import adapter_class
from tokenprune.errors import ConfigError, ModelError, hint
from tokenprune.types import ModelSpec

DTYPES = ("float32", "bfloat16", "float16", "float64")
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config is read and whose weights are not.

    Attributes:
        path: hub id or folder.
        adapter: class of its adapter.
        spec: sizes of the model.
        device: where the weights will be.
        options: of the model's ``from_pretrained``.
        text_tower, scope: see ``ModelAdapter``.
    """

    path: str
    adapter: type[ModelAdapter]
    spec: ModelSpec
    device: torch.device
    options: Mapping[str, Any]
    text_tower: str | None
    scope: str | None

    def load(self) -> ModelAdapter:
        """Load processor and weights, and wrap them.

        Raises:
            ModelError: if they cannot be loaded.
        """
        processor = _load(AutoProcessor, self.path)
        model = _load(AutoModelForImageTextToText, self.path, **self.options)
        return self.adapter(model.eval().to(self.device), processor, text_tower=self.text_tower, scope=self.scope)


def find_checkpoint(
    path: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str = "sdpa",
    text_tower: str | None = None,
    scope: str | None = None,
) -> Checkpoint:
    """Read the config of a checkpoint, and check that it can run as wanted.

    Args:
        path: hub id or folder of the checkpoint.
        dtype: of the weights.
        device: where to, such as ``cpu`` or ``cuda:1``.
        attention: implementation of attention in the LLM and the vision tower.
        text_tower: see ``ModelAdapter``.
        scope: likewise.

    Raises:
        ConfigError: if dtype, device or attention are unknown, or do not go together.
        ModelError: if there is no such checkpoint, no adapter knows it, or its adapter has no such scope.
    """
    place = _device(device)
    if attention not in ATTENTION:
        raise ConfigError(f"attention is {attention!r}; {hint(attention, ATTENTION)}")
    # transformers casts the mask to float32, where the minimum of float64 overflows.
    if (dtype, attention) == ("float64", "eager"):
        raise ConfigError("eager attention gives NaN for padded prompts in float64; use attention sdpa, or float32")
    options = {"dtype": _dtype(dtype, place), "attn_implementation": attention}
    config = _load(AutoConfig, path)
    adapter = adapter_class(config.model_type)
    adapter.check_scope(scope)
    return Checkpoint(path, adapter, adapter.spec_from_config(config), place, options, text_tower, scope)


def load_adapter(path: str, **options: Any) -> ModelAdapter:
    """Load a model by hub id or from a folder, as a user would, and wrap it; see ``find_checkpoint``."""
    return find_checkpoint(path, **options).load()


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
