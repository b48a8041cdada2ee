"""The paired tower as a Hugging Face ``CLIPModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from tokenprune.core.errors import ModelError
from tokenprune.towers.text.base import TextTower


class ClipTower(TextTower):
    """Text model, post_layernorm and both projections of a ``CLIPModel``; its vision layers are not kept.

    A text is pooled where the model pools: at the end-of-text token, or, if its config says ``eos_token_id=2`` as that
    of OpenAI's checkpoints does, at the largest id; this holds for the inner segments of a long text, too.
    """

    kind = family = "clip"

    def __init__(self, model: CLIPModel, tokenizer: AutoTokenizer) -> None:
        self.text_model, self.text_projection = model.text_model, model.text_projection
        self.norm, self.visual_projection = model.vision_model.post_layernorm, model.visual_projection
        self.tokenizer = tokenizer
        self.width = model.config.vision_config.hidden_size
        self.context = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def project(self, patches: Tensor, *, normed: bool = False) -> Tensor:
        """Project patches (..., V) by post_layernorm, unless ``normed``, and the visual projection: (..., C)."""
        weight = self.visual_projection.weight
        x = patches.to(weight.device, weight.dtype)
        embeds: Tensor = self.visual_projection(x if normed else self.norm(x))
        return embeds

    def tokenize(self, text: str) -> Tensor:
        """Token ids (L,) long of a text, never truncated."""
        return torch.tensor(self.tokenizer(text, split_special_tokens=True, truncation=False, verbose=False).input_ids)

    @torch.no_grad()
    def encode(self, segments: Tensor) -> Tensor:
        """Embed pieces of text; padding needs no mask, as the tower is causal and pools before it."""
        device = self.text_projection.weight.device
        pooled = self.text_model(input_ids=segments.to(device)).pooler_output
        embeds: Tensor = self.text_projection(pooled)
        return embeds


def load(source: str, device: torch.device) -> ClipTower:
    """Load from a hub id or folder.

    Raises:
        ModelError: if there is no complete ``CLIPModel`` with a tokenizer.
    """
    model, tokenizer = load_whole(CLIPModel, source)
    return ClipTower(model.to(device), tokenizer)


def load_whole(kind: Any, source: str) -> tuple[Any, Any]:
    """A model of both towers in float32 and evaluation mode, and its tokenizer.

    Args:
        kind: class of the model.
        source: hub id or folder.

    Raises:
        ModelError: if they cannot be loaded, or a part of the model is not there.
    """
    try:
        model, info = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"text tower {source!r} cannot be loaded ({reason}); give another text_tower=") from error
    if info["missing_keys"]:
        raise ModelError(
            f"text tower {source!r} is no complete {type(model).__name__} (missing {min(info['missing_keys'])!r} and "
            f"{len(info['missing_keys']) - 1} more); give text_tower="
        )
    return model.eval(), tokenizer
