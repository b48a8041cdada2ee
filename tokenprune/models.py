"""Which model a configuration means: its sizes at once, its weights on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from tokenprune.adapters.base import ADAPTERS, ModelAdapter, adapter_class
from tokenprune.config import EMBEDDED, ModelConfig
from tokenprune.errors import ConfigError, ModelError, RegistryError, hint
from tokenprune.types import ModelSpec


@dataclass(frozen=True)
class ModelSource:
    """A model that has not been loaded.

    Attributes:
        adapter: class of its adapter.
        spec: its sizes, from its config alone.
        load: loads it and wraps it by the adapter.
    """

    adapter: type[ModelAdapter]
    spec: ModelSpec
    load: Callable[[], ModelAdapter]


def find_model(config: ModelConfig) -> ModelSource:
    """Read a model's config, and check that it can run as wanted.

    Raises:
        RegistryError: if no adapter has the name.
        ModelError: if the checkpoint's config cannot be read, or is not for the adapter.
        ConfigError: if the device is not there.
    """
    if config.name != EMBEDDED and config.name not in ADAPTERS:
        allowed = hint(config.name, [EMBEDDED, *ADAPTERS.names()])
        raise RegistryError(f"unknown model {config.name!r}; {allowed}; see docs/add_an_adapter.md")
    _check_device(config.device)
    from transformers import AutoConfig

    from tokenprune.adapters.load import load_adapter
    from tokenprune.embedded.model import WEIGHTS

    path = config.path or str(WEIGHTS)
    try:
        read = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:  # no such checkpoint, no network, a type that transformers does not know
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"model {path!r} cannot be loaded: {reason}") from None
    adapter = adapter_class(read.model_type)
    if config.name not in (EMBEDDED, _name(adapter)):
        raise ModelError(f"model {path!r} is for the adapter {_name(adapter)!r}, not {config.name!r}; set model.name")
    options = {"dtype": config.dtype, "device": config.device, "attention": config.attention}
    load = partial(load_adapter, path, **options, text_tower=config.text_tower)
    return ModelSource(adapter, adapter.spec_from_config(read), load)


def _name(adapter: type[ModelAdapter]) -> str:
    return next(name for name in ADAPTERS.names() if ADAPTERS.get(name) is adapter)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"model: device must be like cpu, cuda or cuda:0, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"model: device {name!r} is not available on this machine; use cpu")
