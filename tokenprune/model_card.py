"""Published models by their sizes alone, so that costs at paper scale need neither weights nor a network.

The cards are the YAML files in ``tokenprune/cards``; their keys are the fields of ``ModelSpec``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tokenprune.errors import ConfigError, hint
from tokenprune.options import construct
from tokenprune.types import ModelSpec, TransformerSpec

FOLDER = Path(__file__).parent / "cards"


@dataclass(frozen=True)
class ModelCard:
    """A published model.

    Attributes:
        name: of its file.
        hub: its id on the Hugging Face hub.
        note: where its number of visual tokens comes from.
        spec: its sizes, for one image.
    """

    name: str
    hub: str
    note: str
    spec: ModelSpec


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
    hub, note = raw.pop("hub"), raw.pop("note")
    return ModelCard(name, hub, note, _spec(raw, f"model card {name!r}"))


def _spec(raw: Mapping[str, Any], where: str) -> ModelSpec:
    towers = {key: construct(TransformerSpec, raw[key], f"{where}: {key}") for key in ("llm", "vision") if key in raw}
    return construct(ModelSpec, {**raw, **towers}, where)
