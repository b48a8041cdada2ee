"""LLaVA-1.5 and its kin: a CLIP or SigLIP vision tower, an MLP projector, and as many visual tokens for each image.

Paper: Improved Baselines with Visual Instruction Tuning (Liu et al., 2024), https://arxiv.org/abs/2310.03744
Code: ``LlavaForConditionalGeneration`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.inputs import check_pixels
from tokenprune.adapters.registry import register_adapter
from tokenprune.core.signals import SmallerPicture
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import PROJECTOR
from tokenprune.towers.clip import CLIP, first_token, llava_spec


@register_adapter("llava", paper="https://arxiv.org/abs/2310.03744")
class LlavaAdapter(ModelAdapter):
    """LLaVA-1.5: one row of visual tokens an image, 576 for a CLIP tower of 336 pixels."""

    model_types = ("llava",)
    example = "llava-hf/llava-1.5-7b-hf"
    tower = CLIP
    offers = frozenset({SmallerPicture()})
    places = ("tower", "projector", *ModelAdapter.places)

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        return replace(llava_spec(config), early_stage=PROJECTOR)

    def grid(self) -> tuple[int, int] | None:
        """The (height, width) of the patches; None if the projector also reads the CLS token or skips a patch."""
        vision = self.model.config.vision_config
        side = vision.image_size // vision.patch_size
        return (side, side) if side**2 == self.spec.visual_tokens else None

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Refuse images of another size than the tower was made for, in pixels."""
        super().check_inputs(inputs)
        check_pixels(inputs, "images", size=(self.model.config.vision_config.image_size,) * 2)

    def project(self, states: Tensor) -> Tensor:
        projected: Tensor = self.model.base_model.multi_modal_projector(states)
        return projected

    def special_states(self, output: Any) -> Tensor:
        """The state of CLS (I, 1, V); S is 0 if the projector reads CLS anyway or there is none."""
        config = self.model.config
        states: Tensor = output.hidden_states[config.vision_feature_layer]
        return states[:, : first_token(config)]
