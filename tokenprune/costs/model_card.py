"""Published models by their configs alone, so that costs at paper scale need neither weights nor a network.

The cards are the YAML files in ``tokenprune/costs/cards``. Each holds what sizes depend on in the model's
``config.json``, which the model's adapter reads as it reads any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tokenprune.adapters.registry import adapter_class
from tokenprune.core.errors import ConfigError, hint
from tokenprune.core.options import construct
from tokenprune.core.sizes import ModelSpec
from tokenprune.engine.loading import config_of

FOLDER = Path(__file__).parent / "cards"


@dataclass(frozen=True)
class ModelCard:
    """A published model.

    Attributes:
        name: of its file.
        hub: its id on the Hugging Face hub.
        source: where the config is from.
        billions: of parameters, as its page on the hub says.
        note: where its number of visual tokens comes from.
        config: as of its ``config.json``, as far as sizes depend on it.
    """

    name: str
    hub: str
    source: str
    billions: float
    note: str
    config: Mapping[str, Any]

    @cached_property
    def spec(self) -> ModelSpec:
        """Sizes of the model, for one image."""
        config = config_of(self.config)
        return adapter_class(config.model_type).spec_from_config(config)


def card_names() -> list[str]:
    """Names of all cards, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_card(name: str) -> ModelCard:
    """The card of a published model.

    Args:
        name: such as ``llava-next-7b``.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in card_names():
        raise ConfigError(f"there is no model card {name!r}; {hint(name, card_names())}")
    raw: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return construct(ModelCard, {"name": name, **raw}, f"model card {name!r}")
