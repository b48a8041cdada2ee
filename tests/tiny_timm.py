"""Tiny ViTs of timm with random weights, and a slow reference that calls their blocks by hand."""

import timm
import torch

from tokenprune.core.signals import TowerAttention, TowerKeys
from tokenprune.pruners.base import ScorePruner
from tokenprune.testing.families.parts import randomise

SIZES = {"img_size": 24, "patch_size": 4, "num_classes": 10, "embed_dim": 32, "depth": 4, "num_heads": 4}  # 36 patches
SCALED = {"num_classes": 10, "init_values": 0.7}  # of layer scales, which begin near zero
# Name: the model that it is a small one of, and how it differs from it.
VITS = {
    "vit": ("vit_tiny_patch16_224", {}),
    "deit distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4, "no_embed_class": True, "qk_norm": True}),
    "no cls": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "dinov2": ("vit_small_patch14_dinov2", SCALED),
    "post norm": ("vit_tiny_patch16_224", {"block_fn": timm.models.vision_transformer.ResPostBlock}),
    "eva02": ("eva02_tiny_patch14_224", {}),
    "eva post norm": ("eva02_tiny_patch14_224", {"use_post_norm": True}),
    "dinov3": ("vit_small_patch16_dinov3", SCALED),
    "mixed rope": ("vit_small_patch16_rope_mixed_224", SCALED),
    "axial rope": ("vit_medium_patch16_rope_reg1_gap_256", SCALED),
    "grouped": ("vit_small_patch16_dinov3", {**SCALED, "attn_type": "rope", "qkv_fused": False, "num_kv_heads": 2}),
}
WITH_CLS = [name for name in VITS if name not in ("no cls", "siglip", "axial rope")]


def tiny_vit(name="vit", *, fused=True, **changes):
    hub, own = VITS[name]
    torch.manual_seed(0)
    model = randomise(timm.create_model(hub, pretrained=False, **{**SIZES, **own, **changes}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # biases and norms, which begin as zeros and ones
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


def images(number=3, size=24, seed=0):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def embedded(model, pixels):
    """What enters the first block, and the rotary embeddings of all patches: None, or (blocks, N or heads x N, d)."""
    hidden, rope = model.patch_embed(pixels), None
    hidden = model._pos_embed(hidden)
    if isinstance(hidden, tuple):
        hidden, rope = hidden
        rope = rope if getattr(model, "rope_mixed", False) else rope[None].expand(len(model.blocks), -1, -1)
    return model.norm_pre(hidden), rope


def by_hand(model, pixels, keeps):
    """Logits of each image alone, if its blocks get the patches of ``keeps`` (layer: (B, K)) and no others."""
    rows = []
    for row in range(len(pixels)):
        hidden, rope = embedded(model, pixels[row : row + 1])
        prefix = model.num_prefix_tokens
        left = torch.arange(hidden.shape[1] - prefix)
        for index, block in enumerate(model.blocks):
            if index in keeps:
                keep = keeps[index][row]
                places = torch.isin(left, keep).nonzero()[:, 0]
                hidden = torch.cat([hidden[:, :prefix], hidden[:, prefix + places]], 1)
                left = keep
            options = {} if rope is None else {"rope": rope[index][..., left, :]}
            hidden = block(hidden, **options)
        rows.append(model.forward_head(model.norm(hidden)))
    return torch.cat(rows)


def masked(model, pixels, keeps):
    """(B, prefix + K, D) at the end, if the patches that are not in ``keeps`` are hidden as keys, not removed."""
    rows = []
    for row in range(len(pixels)):
        hidden, rope = embedded(model, pixels[row : row + 1])
        prefix, length = model.num_prefix_tokens, hidden.shape[1]
        seen = torch.ones(length, dtype=torch.bool)
        for index, block in enumerate(model.blocks):
            if index in keeps:
                seen[prefix:] = torch.isin(torch.arange(length - prefix), keeps[index][row])
            options = {} if rope is None else {"rope": rope[index]}
            mask = torch.zeros(length).masked_fill(~seen, -torch.inf).expand(1, 1, length, length)
            hidden = block(hidden, attn_mask=mask, **options)
        rows.append(model.norm(hidden)[:, seen])
    return torch.cat(rows)


class ByCLS(ScorePruner):
    """Keeps the patches to which the CLS token attends most."""

    requires = frozenset({TowerAttention("cls")})

    def score(self, tokens):
        return tokens.signal(TowerAttention("cls")).mean(1)


class ByKeys(ScorePruner):
    """Keeps the patches with the largest keys."""

    requires = frozenset({TowerKeys()})

    def score(self, tokens):
        return tokens.signal(TowerKeys()).norm(dim=-1)
