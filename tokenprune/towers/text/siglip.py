"""The paired tower as a Hugging Face ``SiglipModel`` or ``Siglip2Model``, and how a patch is embedded by a SigLIP.

A SigLIP has no projection of patches: a head pools them by attention, then adds an MLP. A patch is embedded as what
the head gives of this patch alone: its value and output projection, and the MLP. For one patch this is the model's own
embedding of the image. No paper says so; it is inferred from CLIP, where CDPruner projects each patch, too.

Paper: Sigmoid Loss for Language Image Pre-Training (Zhai et al., 2023), https://arxiv.org/abs/2303.15343
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, Siglip2Model, SiglipModel

from tokenprune.core.errors import ModelError
from tokenprune.towers.text.base import TextTower, strip_padding
from tokenprune.towers.text.clip import load_whole

AT_ONCE = 4096  # patches; the MLP makes several times their width of each


def pool_alone(pool: Callable[[Tensor], Tensor], patches: Tensor) -> Tensor:
    """What an attention pooling head gives of each patch alone, (..., C).

    Args:
        pool: the head, (I, N, V) to (I, C).
        patches: (..., V), after the last norm.
    """
    alone = patches.reshape(-1, 1, patches.shape[-1])
    embeds = torch.cat([pool(part) for part in torch.split(alone, AT_ONCE)])
    return embeds.view(*patches.shape[:-1], -1)


class SiglipTower(TextTower):
    """Text model, last norm and head of the vision model of a SigLIP; its vision layers are not kept.

    A text is pooled at the last place of a segment, as the model was trained on texts that are filled up with padding.
    """

    kind, family = "clip", "siglip"

    def __init__(self, model: SiglipModel | Siglip2Model, tokenizer: AutoTokenizer) -> None:
        self.text_model, self.tokenizer = model.text_model, tokenizer
        self.norm, self.head = model.vision_model.post_layernorm, model.vision_model.head
        self.width = model.config.vision_config.hidden_size
        self.context = model.config.text_config.max_position_embeddings
        self.pad = tokenizer.pad_token_id

    @torch.no_grad()
    def project(self, patches: Tensor, *, normed: bool = False) -> Tensor:
        """Project patches (..., V) by what the pooling head gives of each alone: (..., C)."""
        weight = self.norm.weight
        x = patches.to(weight.device, weight.dtype)
        return pool_alone(self.head, x if normed else self.norm(x))

    def tokenize(self, text: str) -> Tensor:
        """Token ids (L,) long of a text, without the end of text where that is the padding, too."""
        ids = self.tokenizer(text, split_special_tokens=True, truncation=False, verbose=False).input_ids
        return strip_padding(torch.tensor(ids), self.pad)

    @torch.no_grad()
    def encode(self, segments: Tensor) -> Tensor:
        """Embed pieces of text; the model sees padding, as in training."""
        embeds: Tensor = self.text_model(input_ids=segments.to(self.norm.weight.device)).pooler_output
        return embeds


def load(source: str, device: torch.device) -> SiglipTower:
    """Load from a hub id or folder.

    Raises:
        ModelError: if there is no complete model with a tokenizer, or it has no pooling head.
    """
    model, tokenizer = load_whole(AutoModel, source)
    if not hasattr(model.vision_model, "head"):
        raise ModelError(f"text tower {source!r} has no pooling head, which embeds patches; give another text_tower=")
    return SiglipTower(model.to(device), tokenizer)
