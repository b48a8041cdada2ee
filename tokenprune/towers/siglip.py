"""SigLIP vision towers whose last features are read, behind the tower's last norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from einops import rearrange
from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import TOWER, PairedImage, Signal, TowerHeadMean
from tokenprune.towers.base import TowerOutput
from tokenprune.towers.rows import NormedTower


@dataclass(frozen=True)
class SiglipVision(NormedTower):
    """A SigLIP tower.

    Attributes:
        name: of the tower in the base model.
    """

    name: str = "vision_tower"

    def door(self, model: Any) -> Any:
        return getattr(model.base_model, self.name)

    def layers(self, model: Any) -> Sequence[Any]:
        layers: Sequence[Any] = self.door(model).encoder.layers
        return layers


@dataclass(frozen=True)
class IdeficsVision(SiglipVision):
    """A SigLIP tower that can be told to ignore padding in a picture."""

    def attention(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Attention that patches get; ModelError where padding in a tile hides patches."""
        _check_whole(seen.inputs)
        return super().attention(signal, seen)


def _check_whole(inputs: Mapping[str, Any]) -> None:
    """Raise ModelError if a part of a tile is hidden from the tower."""
    mask = inputs.get("pixel_attention_mask")
    whole = None if mask is None else rearrange(mask, "rows tiles h w -> rows tiles (h w)")
    if whole is not None and bool((whole.any(2) != whole.all(2)).any()):
        raise ModelError("pixel_attention_mask hides a part of a tile, so received_attention is not known there")


SIGLIP = SiglipVision(TOWER | {PairedImage(), TowerHeadMean()})
IDEFICS = IdeficsVision(SIGLIP.offers, name="vision_model")
