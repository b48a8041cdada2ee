"""CLIP and SigLIP vision towers as LLaVA and its successors have them: the projector reads any layer, or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import TOWER, PairedImage, TowerAttention, TowerHeadMean, TowerLogits, TowerValueAttention
from tokenprune.core.sizes import ModelSpec
from tokenprune.towers.rows import RowTower
from tokenprune.towers.sizes import decoder_spec, has_head, vision_spec

CLS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # of the vision towers that are known


def llava_spec(config: Any, tiles: int = 1) -> ModelSpec:
    """Sizes of a model of a vision tower, an MLP projector of two layers and an LLM.

    Args:
        config: of the model. Of the tower's tokens, its projector skips the first with the strategy ``default``.
        tiles: that the tower sees of an image.

    Raises:
        ModelError: if the vision tower is not known.
    """
    vision, layers = config.vision_config, config.vision_feature_layer
    if vision.model_type not in CLS_TOKENS:
        raise ModelError(f"vision tower {vision.model_type!r} is not known; known: {', '.join(sorted(CLS_TOKENS))}")
    tokens = (vision.image_size // vision.patch_size) ** 2 + CLS_TOKENS[vision.model_type]
    reads = (layers,) if isinstance(layers, int) else layers
    width = config.text_config.hidden_size
    return ModelSpec(
        llm=decoder_spec(config.text_config),
        vocabulary=config.text_config.vocab_size,
        visual_tokens=tiles * (tokens - first_token(config)),
        vision=vision_spec(vision),
        vision_tokens=tiles * tokens,
        vision_tiles=tiles,
        vision_prefix=CLS_TOKENS[vision.model_type],
        vision_read=max(layer % (vision.num_hidden_layers + 1) for layer in reads),
        vision_head=has_head(vision),
        patch_inputs=vision.num_channels * vision.patch_size**2,
        projector=(vision.hidden_size * len(reads), width, width),
    )


def first_token(config: Any) -> int:
    """Which of the tower's tokens is the first that the projector reads."""
    return int(config.vision_feature_select_strategy == "default")


@dataclass(frozen=True)
class ClipVision(RowTower):
    """A CLIP or SigLIP tower of which the projector reads a layer that the config names, before any last norm."""

    def layers(self, model: Any) -> Sequence[Any]:
        layers: Sequence[Any] = model.base_model.vision_tower.encoder.layers
        return layers

    def prefix(self, config: Any) -> int:
        """One token, CLS, of a CLIP tower; none of a SigLIP tower."""
        return CLS_TOKENS[config.vision_config.model_type]

    def first(self, config: Any) -> int:
        """Which of a picture's tokens is the first that the projector reads, as the config says it."""
        return first_token(config)

    def door(self, model: Any) -> Any:
        return model.base_model.vision_tower

    def reads(self, config: Any) -> tuple[int, ...]:
        layers = config.vision_feature_layer
        several = (layers,) if isinstance(layers, int) else layers
        return tuple(layer % (self.depth(config) + 1) - 1 for layer in several)


UNNORMED_SIGLIP = ClipVision(TOWER | {PairedImage(), TowerHeadMean()})
OF_CLS = {TowerAttention("cls"), TowerLogits(), TowerValueAttention()}
CLIP = ClipVision(UNNORMED_SIGLIP.offers | {TowerHeadMean("values"), *OF_CLS})
