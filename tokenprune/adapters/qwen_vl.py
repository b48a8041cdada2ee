"""Qwen2-VL and Qwen2.5-VL: images and videos of any size, four patches a visual token, positions with three axes.

Papers: Qwen2-VL (Wang et al., 2024), https://arxiv.org/abs/2409.12191;
    Qwen2.5-VL Technical Report (Bai et al., 2025), https://arxiv.org/abs/2502.13923
Code: ``Qwen2VLForConditionalGeneration`` and ``Qwen2_5_VLForConditionalGeneration`` of transformers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.inputs import PIXELS, no_new_images, real_tokens
from tokenprune.adapters.mrope import all_axes, check_axes, close_gaps, mrope_positions
from tokenprune.adapters.registry import register_adapter
from tokenprune.core.errors import ModelError
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.steps import Step
from tokenprune.towers import nominal
from tokenprune.towers.items import Item, Unit
from tokenprune.towers.pictures import Pictures, over_time, unpack
from tokenprune.towers.qwen import QWEN
from tokenprune.towers.sizes import decoder_spec

SIDE = 36  # visual tokens: height and width of the image that a ModelSpec is of; CDPruner's experiments fix it so


@register_adapter("qwen_vl", paper="https://arxiv.org/abs/2502.13923")
class QwenVLAdapter(ModelAdapter):
    """Qwen2-VL, Qwen2.5-VL: a row of visual tokens for each image and frame of a video, 1296 for 1008 x 1008 pixels.

    What the model takes for a frame are two frames of the video. Scopes: ``frame``; ``video``, in which a video is one
    row; and ``per_frame``, in which budgets are of a frame, not of the whole video.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")
    example = "Qwen/Qwen2.5-VL-7B-Instruct"
    prompt = "USER: <|vision_start|><|image_pad|><|vision_end|>{question} ASSISTANT:"
    scopes = ("frame", "video", "per_frame")
    any_size = True
    tower = QWEN

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        """Sizes for a square image of 36 x 36 visual tokens, as any size is possible."""
        vision = config.vision_config
        if config.model_type == "qwen2_vl":
            return qwen_spec(config, vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio), mlp_matrices=2)
        return replace(
            qwen_spec(config, vision.hidden_size, vision.intermediate_size, mlp_matrices=3),
            vision_window=(vision.window_size // vision.patch_size) ** 2,
            vision_window_layers=vision.depth - len(vision.fullatt_block_indexes),
        )

    @classmethod
    def check_steps(cls, steps: Sequence[Step]) -> None:
        super().check_steps(steps)
        check_axes(steps)

    def nominal_inputs(self, text: int) -> dict[str, Tensor]:
        patches, config = math.isqrt(self.spec.vision_tokens), self.model.config
        prompt = nominal.marked(nominal.prompt(config, text, self.spec.visual_tokens), "mm_token_type_ids", config)
        pixels = nominal.noise(self.spec.vision_tokens, self.spec.patch_inputs)
        return {**prompt, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, patches, patches]])}

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Check that the model can tell where images are, by ``mm_token_type_ids`` and the grids of patches."""
        super().check_inputs(inputs)
        given = [f"{name}_grid_thw" for name, pixels in PIXELS.items() if inputs.get(pixels) is not None]
        if missing := [name for name in (*given, "mm_token_type_ids") if inputs.get(name) is None]:
            raise ModelError(f"{', '.join(missing)} must be given, too; use the model's own processor")
        for name in given:
            patches, rows = int(inputs[name].prod(-1).sum()), len(inputs[PIXELS[name.partition("_")[0]]])
            if patches != rows:
                raise ModelError(
                    f"{name} tells of {patches} patches, but {rows} are given; use the model's own processor"
                )

    def count_images(self, ids: Tensor) -> Tensor:
        """Refuse images in later turns: their numbers of tokens vary, so a prompt does not tell how many there are."""
        return no_new_images(self.placeholders(ids))

    def positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """Position ids (4, B, L) of the unpruned prompt."""
        return mrope_positions(self.model, inputs)

    def forward_positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """Position ids (4, B, L) of a forward: those that ``generate`` uses."""
        return self.positions(inputs)

    def given_positions(self, positions: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Position ids (4, B, L) from the shape that a caller gave."""
        return all_axes(positions, real_tokens(inputs))

    def repacked(self, positions: Tensor, placeholder: Tensor, gone: Tensor) -> Tensor:
        return close_gaps(positions, placeholder, gone)

    def items(self, modality: str, output: Any, inputs: Mapping[str, Any]) -> list[Item]:
        found, merge, see = [], self.model.config.vision_config.spatial_merge_size, self._pictures
        grids = inputs[f"{modality}_grid_thw"]
        pixels = torch.split(inputs[PIXELS[modality]], grids.prod(-1).tolist())
        for x, patches, (frames, height, width) in zip(output.pooler_output, pixels, grids.tolist(), strict=True):
            grid, tokens = (height // merge, width // merge), torch.arange(len(x), device=x.device)
            if self.scope == "per_frame":
                parts = zip(x.chunk(frames), patches.chunk(frames), strict=True)
                unit, shape = Unit(tokens[: len(x) // frames], grid), (1, height, width)
                found += [Item(own, [unit], pixels, see(modality, pixels, shape)) for own, pixels in parts]
                continue
            whole = self.scope == "video" and frames > 1
            units = [Unit(tokens)] if whole else [Unit(frame, grid) for frame in tokens.view(frames, -1)]
            found.append(Item(x, units, patches, see(modality, patches, (frames, height, width))))
        return found

    def _pictures(self, modality: str, patches: Tensor, grid: tuple[int, int, int]) -> Pictures:
        """Pictures of an image or video of ``grid`` patches: one for an image, for a frame all that it is made of."""
        vision = self.model.config.vision_config
        temporal, merge = vision.temporal_patch_size, vision.spatial_merge_size
        pixels = unpack(patches, grid, patch=vision.patch_size, temporal=temporal, merge=merge)
        places = (grid[1] // merge, grid[2] // merge)
        if modality == "image":
            return Pictures(pixels[:1], places)
        return Pictures(pixels, places, functools.partial(over_time, temporal=temporal))


def qwen_spec(config: Any, width: int, mlp_width: int, mlp_matrices: int) -> ModelSpec:
    """Sizes of a model of a Qwen vision tower, a merger of patches and an LLM, for an image of ``SIDE`` x ``SIDE``.

    Args:
        config: of the model.
        width: of the tower's hidden states.
        mlp_width: of its MLPs.
        mlp_matrices: of these.
    """
    vision, text = config.vision_config, config.text_config
    merged = vision.spatial_merge_size**2
    heads = vision.num_heads
    return ModelSpec(
        position_axes=3,
        llm=decoder_spec(text),
        vocabulary=text.vocab_size,
        visual_tokens=SIDE**2,
        vision=TransformerSpec(vision.depth, width, mlp_width, heads, heads, width // heads, mlp_matrices),
        vision_tokens=SIDE**2 * merged,
        patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        projector=(merged * width, merged * width, text.hidden_size),
    )
