"""The paired tower as an open_clip model, for towers that Hugging Face's CLIP lacks, and for SigLIP."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenprune.core.errors import ModelError, hint
from tokenprune.towers.text.base import TextTower, strip_padding
from tokenprune.towers.text.siglip import pool_alone

TOKENS_PER_BYTE = 16  # more than any tokenizer makes of a text, however it normalises it


class OpenClipTower(TextTower):
    """Text tower and head of the vision tower of an open_clip model; its vision layers are not kept.

    A CLIP tower's head is ``ln_post`` and ``proj``, applied to each patch. For a SigLIP's see ``siglip``.
    """

    kind = "open_clip"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.family, self._norm, self._head, self.width = _patch_head(model.visual)
        model.visual = torch.nn.Identity()
        self.model, self.tokenizer = model, tokenizer
        self.context = model.context_length
        self.device = next(model.parameters()).device
        self._special = re.compile("|".join(map(re.escape, _special_names(tokenizer))) or "(?!)", re.IGNORECASE)
        self.pad = int(self._padded("a")[-1])

    @torch.no_grad()
    def project(self, patches: Tensor, *, normed: bool = False) -> Tensor:
        """Project patches (..., V) by the head of the vision tower: (..., C)."""
        x = patches.to(self.device, torch.float32)
        embeds: Tensor = self._head(x if normed else self._norm(x))
        return embeds

    def _padded(self, text: str) -> Tensor:
        # open_clip's tokenizers always truncate, so the context asked for is longer than the text can be.
        longest = self.context + TOKENS_PER_BYTE * len(text.encode())
        ids: Tensor = self.tokenizer([text], context_length=longest)[0]
        return ids

    def tokenize(self, text: str) -> Tensor:
        """Token ids (L,) long of a text; a space makes words of what would be a special token."""
        return strip_padding(
            self._padded(self._special.sub(lambda name: f"{name[0][0]} {name[0][1:]}", text)), self.pad
        )

    @torch.no_grad()
    def encode(self, segments: Tensor) -> Tensor:
        """Embed pieces of text by the model's ``encode_text``: (S, context) to (S, C)."""
        embeds: Tensor = self.model.encode_text(segments.to(self.device))
        return embeds


def _special_names(tokenizer: Any) -> list[str]:
    """Special tokens of a tokenizer of open_clip: its own, or one of Hugging Face in it."""
    if hasattr(tokenizer, "tokenizer"):
        return list(tokenizer.tokenizer.all_special_tokens)
    return [tokenizer.decoder[token] for token in getattr(tokenizer, "all_special_ids", ())]


def _patch_head(visual: Any) -> tuple[str, Any, Any, int]:
    """Family, last norm, what leads on from a patch to the shared space, and the width of hidden states."""
    if hasattr(visual, "ln_post") and getattr(visual, "attn_pool", None) is None:
        proj = visual.proj
        return "clip", visual.ln_post, lambda patches: patches @ proj, visual.ln_post.normalized_shape[0]
    trunk: Any = getattr(visual, "trunk", visual)
    if getattr(trunk, "global_pool", None) == "map" and trunk.num_prefix_tokens == 0:
        trunk.blocks, head = torch.nn.Sequential(), visual.head  # the rest of the trunk stays in memory with its head

        def embed(patches: Tensor) -> Tensor:
            return pool_alone(lambda alone: head(trunk.forward_head(alone)), patches)

        return "siglip", trunk.norm, embed, trunk.num_features
    name = type(trunk).__name__
    raise ModelError(f"open_clip's {name} has no head that embeds single patches; use CLIP's or SigLIP's transformers")


def load(source: str, device: torch.device) -> OpenClipTower:
    """Load a model.

    Args:
        source: ``<model>@<weights>`` where weights are a tag or a checkpoint file, ``<model>`` alone if it has one tag,
            a folder with ``open_clip_config.json`` and weights, or ``hf-hub:<id>``.
        device: where to.

    Raises:
        ModelError: if the model or its weights are not known, cannot be loaded or have no usable head.
    """
    import open_clip  # takes seconds

    name, _, weights = source.partition("@")
    if Path(name).is_dir():
        name = f"local-dir:{name}"
    plain = ":" not in name
    if plain and name not in open_clip.list_models():
        near = ", ".join(get_close_matches(name, open_clip.list_models(), n=5, cutoff=0.3))
        raise ModelError(f"unknown open_clip model {name!r}; near names: {near or 'none'}")
    if plain and not weights:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if len(tags) != 1:
            raise ModelError(f"open_clip model {name!r} needs weights, as in {name}@<weights>; {hint(weights, tags)}")
        weights = tags[0]
    # Weights of OpenAI need QuickGELU, also under the names of models whose config does not say so.
    quick = plain and (open_clip.get_pretrained_cfg(name, weights) or {}).get("quick_gelu", False)
    try:
        model = open_clip.create_model(
            name, pretrained=weights or None, device=device, force_quick_gelu=quick, require_pretrained=True
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"open_clip model {source!r} cannot be loaded ({reason})") from error
    return OpenClipTower(model.eval(), tokenizer)
