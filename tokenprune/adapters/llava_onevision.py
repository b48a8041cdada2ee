"""LLaVA-OneVision: images in tiles whose visual tokens are resized if they are too many, and videos.

Newline tokens, one at the end of each line of tiles and of each video, are text to a pruner: they always stay. Where
the model resizes visual tokens, bilinearly, signals of the vision tower are resized likewise, which no paper says.

Paper: LLaVA-OneVision: Easy Visual Task Transfer (Li et al., 2024), https://arxiv.org/abs/2408.03326
Code: ``LlavaOnevisionForConditionalGeneration`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.inputs import check_pixels, no_new_images
from tokenprune.adapters.registry import register_adapter
from tokenprune.core.sizes import ModelSpec
from tokenprune.towers import anyres
from tokenprune.towers.anyres import check_tiles, image_items, pack
from tokenprune.towers.clip import UNNORMED_SIGLIP, llava_spec
from tokenprune.towers.frames import video_items
from tokenprune.towers.items import Item


@register_adapter("llava_onevision", paper="https://arxiv.org/abs/2408.03326")
class LlavaOnevisionAdapter(ModelAdapter):
    """LLaVA-OneVision: a row for each tile of an image and frame of a video, or one for all of it (scope ``image``).

    Scope ``per_frame``: as ``tile``, with a budget for each frame.

    Its SigLIP tower has no CLS token, hence no CLS attention.
    """

    model_types = ("llava_onevision",)
    example = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    prompt = "<|im_start|>user <image>\n{question}<|im_end|><|im_start|>assistant\n"
    scopes = ("tile", "image", "per_frame")
    any_size = True  # of videos
    tower = UNNORMED_SIGLIP

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        """Sizes for an image of as many tiles as are not resized, newline tokens not counted."""
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        side = config.vision_config.image_size
        largest = max(height * width for height, width in config.image_grid_pinpoints) // side**2
        return llava_spec(config, 1 + min(most, largest))

    def nominal_inputs(self, text: int) -> dict[str, Tensor]:
        return anyres.nominal_inputs(self.model.config, self.spec, text)

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        super().check_inputs(inputs)
        config = self.model.config
        if inputs.get("pixel_values") is not None:
            check_tiles(config, inputs)
        if inputs.get("pixel_values_videos") is not None:
            check_pixels(inputs, "videos", "frames", size=(config.vision_config.image_size,) * 2, modality="video")

    def count_images(self, ids: Tensor) -> Tensor:
        """Refuse images in later turns: their numbers of tokens vary, so a prompt does not tell how many there are."""
        return no_new_images(self.placeholders(ids))

    def items(self, modality: str, output: Any, inputs: Mapping[str, Any]) -> list[Item]:
        if modality == "image":
            joint = self.scope == "image"
            return image_items(self.model, output.pooler_output, inputs, joint=joint, **self._options())
        videos, tokens = inputs["pixel_values_videos"], output.pooler_output.shape[1] - 1  # and a newline at the end
        return video_items(output.pooler_output, videos, round((tokens / videos.shape[1]) ** 0.5), self.scope)

    def shortened(self, output: Any, parts: list[Tensor], kept: list[Tensor]) -> Any:
        """The kept visual tokens; for videos a tensor in which each counts as a video, so that beams can be made."""
        videos = isinstance(output.pooler_output, Tensor)
        return BaseModelOutputWithPooling(pooler_output=torch.cat(parts)[:, None] if videos else parts)

    def per_token(self, modality: str, x: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Signals resized as the model resizes features; 0 for newlines."""
        if modality == "image":
            return torch.cat(pack(self.model, x, inputs, **self._options()))
        videos = self.model.base_model.apply_pooling(x).reshape(len(inputs["pixel_values_videos"]), -1, x.shape[2])
        return torch.nn.functional.pad(videos, (0, 0, 0, 1)).flatten(0, 1)

    def _options(self) -> dict[str, Any]:
        return {"vision_aspect_ratio": self.model.config.vision_aspect_ratio}
