"""LLaVA-NeXT-Video: LLaVA-NeXT, and videos of which a visual token is a square of patches of a frame.

What the model does to the patches of a square, the signals of a video's token are their means.

Paper: LLaVA-NeXT: A strong zero-shot video understanding model (Zhang et al., 2024),
    https://llava-vl.github.io/blog/2024-04-30-llava-next-video/
Code: ``LlavaNextVideoForConditionalGeneration`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.adapters.inputs import check_pixels
from tokenprune.adapters.llava_next import LlavaNextAdapter
from tokenprune.adapters.registry import register_adapter
from tokenprune.towers.frames import video_items
from tokenprune.towers.items import Item
from tokenprune.towers.patches import pool


@register_adapter("llava_next_video", paper="https://llava-vl.github.io/blog/2024-04-30-llava-next-video/")
class LlavaNextVideoAdapter(LlavaNextAdapter):
    """LLaVA-NeXT-Video: tiles of images as in LLaVA-NeXT, and a row of 144 visual tokens for each frame of a video.

    Scopes: ``tile`` (so that a frame is a row), ``image`` (all of an image or video is one), and ``per_frame`` (as
    ``tile``, with a budget for each frame).
    """

    model_types = ("llava_next_video",)
    example = "llava-hf/LLaVA-NeXT-Video-7B-hf"
    scopes = ("tile", "image", "per_frame")
    any_size = True  # of videos

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        super().check_inputs(inputs)
        if inputs.get("pixel_values_videos") is not None:
            size = (self.model.config.vision_config.image_size,) * 2
            check_pixels(inputs, "videos", "frames", size=size, modality="video")

    def items(self, modality: str, output: Any, inputs: Mapping[str, Any]) -> list[Item]:
        if modality == "image":
            return super().items(modality, output, inputs)
        features = [x.reshape(-1, x.shape[-1]) for x in output.pooler_output]  # transformers 5.20 keeps frames apart
        side = self._patches() // self.model.config.spatial_pool_stride
        return video_items(features, inputs["pixel_values_videos"], side, self.scope)

    def per_token(self, modality: str, x: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Signals of visual tokens: 0 for newlines, and for a video means over the patches of a token."""
        if modality == "image":
            return super().per_token(modality, x, inputs)
        return pool(x, (self._patches(),) * 2, self.model.config.spatial_pool_stride).flatten(0, 1)

    def _patches(self) -> int:
        """Height and width of what the tower sees at once, in patches."""
        vision = self.model.config.vision_config
        side: int = vision.image_size // vision.patch_size
        return side
