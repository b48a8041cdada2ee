"""Qwen3-VL: as Qwen2.5-VL, and features of earlier vision layers are added behind the LLM's first layers (DeepStack).

Paper: Qwen3-VL Technical Report (Bai et al., 2025), https://arxiv.org/abs/2511.21631;
    DeepStack (Meng et al., 2024), https://arxiv.org/abs/2406.04334
Code: ``Qwen3VLForConditionalGeneration`` of transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from tokenprune.adapters.qwen_vl import QwenVLAdapter, qwen_spec
from tokenprune.adapters.registry import register_adapter
from tokenprune.core.errors import ModelError
from tokenprune.core.sizes import ModelSpec


@register_adapter("qwen3_vl", paper="https://arxiv.org/abs/2511.21631")
class Qwen3VLAdapter(QwenVLAdapter):
    """Qwen3-VL: a row of visual tokens for each image and frame of a video, 1296 for 1152 x 1152 pixels.

    The features that DeepStack adds leave with the tokens. Frames and scopes are as those of Qwen2.5-VL; the time of
    each frame is text between them.
    """

    model_types = ("qwen3_vl",)
    example = "Qwen/Qwen3-VL-8B-Instruct"

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        """Sizes for a square image of 36 x 36 visual tokens, as any size is possible."""
        vision, layers = config.vision_config, config.text_config.num_hidden_layers
        levels = len(vision.deepstack_visual_indexes)
        if levels >= layers:
            raise ModelError(f"the LLM has {layers} layers, so that DeepStack cannot add behind {levels} of them")
        spec = qwen_spec(config, vision.hidden_size, vision.intermediate_size, mlp_matrices=2)
        return replace(spec, projectors=1 + levels)

    def aligned(self, output: Any, move: Callable[[Tensor], Tensor]) -> Any:
        """The output of the encoder in which what DeepStack adds to a token is folded and moved with it."""
        levels = [move(torch.cat(list(level))) for level in output.deepstack_features]
        sizes = [len(part) for part in output.pooler_output]
        parts = [list(torch.split(level, sizes)) for level in levels]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=output.pooler_output, deepstack_features=parts)

    def shortened(self, output: Any, parts: list[Tensor], kept: list[Tensor]) -> Any:
        """The kept visual tokens; made features, unlike folded ones, change nothing that DeepStack adds."""
        stay, sizes = torch.cat(kept), [len(part) for part in parts]
        wholes = [torch.cat(list(level)) for level in output.deepstack_features]
        levels = [list(torch.split(whole[stay.to(whole.device)], sizes)) for whole in wholes]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=parts, deepstack_features=levels)
