"""Signals of a stage inside the LLM: attention, keys, hidden states and input embeddings."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from tokenprune.core.precision import exact
from tokenprune.core.signals import (
    HeadKeys,
    ImageEmbeds,
    Keys,
    NormedHidden,
    RopeSimilarity,
    TextAttention,
    TextEmbeds,
    TextKeys,
    TextMask,
    TextNormedHidden,
)
from tokenprune.engine.decoder.stage_view import StageRows
from tokenprune.engine.decoder.tap import Attended
from tokenprune.engine.providers.base import provides
from tokenprune.functional.vectors import of_rows, take, widen


@provides(TextMask)
def text_mask(signal: TextMask, at: StageRows) -> Tensor:
    """Which text rows (G, Q) bool are no padding."""
    return at.text(signal.rows)[1]


@provides(TextAttention)
def text_attention(signal: TextAttention, at: StageRows) -> Tensor:
    """Attention (G, H, Q, N) of the text rows to the visual tokens."""
    rows, valid = at.text(signal.rows)[0], of_rows(at.view.alive.valid, at.batch)
    weights = at.view.attended[signal.layer].probabilities(rows, valid, at.batch)
    return weights.gather(3, at.visual[:, None, None].expand(-1, *weights.shape[1:3], -1))


@provides(Keys)
def keys(signal: Keys, at: StageRows) -> Tensor:
    """Keys (G, N, C) of the visual tokens, heads side by side."""
    return take(_flat_keys(at.view.attended[signal.layer], at.batch), at.visual)


@provides(HeadKeys)
def head_keys(signal: HeadKeys, at: StageRows) -> Tensor:
    """Keys (G, H', N, d) of the visual tokens, of each of the H' key-value heads."""
    keys = of_rows(at.view.attended[signal.layer].key, at.batch)
    return keys.gather(2, at.visual[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3]))


@provides(TextKeys)
def text_keys(signal: TextKeys, at: StageRows) -> Tensor:
    """Keys (G, Q, C) of the text rows, heads side by side."""
    return take(_flat_keys(at.view.attended[signal.layer], at.batch), at.text(signal.rows)[0])


@provides(NormedHidden)
def normed_hidden(signal: NormedHidden, at: StageRows) -> Tensor:
    """Hidden states (G, N, D) of the visual tokens, through the LLM's final norm."""
    return at.view.norm(take(at.hidden, at.visual)).to(at.hidden.device)


@provides(TextNormedHidden)
def text_normed_hidden(signal: TextNormedHidden, at: StageRows) -> Tensor:
    """Hidden states (G, Q, D) of the text rows, through the LLM's final norm."""
    return at.view.norm(take(at.hidden, at.text(signal.rows)[0])).to(at.hidden.device)


@provides(TextEmbeds)
def text_embeds(signal: TextEmbeds, at: StageRows) -> Tensor:
    """Input embeddings (G, Q, D) of the text rows."""
    slots = of_rows(at.view.alive.slots, at.batch).gather(1, at.text(signal.rows)[0])
    return take(of_rows(at.view.embeds, at.batch), slots)


@provides(ImageEmbeds)
def image_embeds(signal: ImageEmbeds, at: StageRows) -> Tensor:
    """Input embeddings (G, M, D) of all visual tokens that entered the LLM."""
    visual = of_rows(at.view.prompt.visual, at.batch).nonzero()[:, 1].view(len(at.batch), -1)
    return take(of_rows(at.view.embeds, at.batch), visual)


@provides(RopeSimilarity)
def rope_similarity(signal: RopeSimilarity, at: StageRows) -> Tensor:
    """Similarity (G, Q, N) of text rows and visual tokens by their positions alone: of vectors of ones, rotated."""
    whole = (x.to(at.batch.device).expand(len(at.view.hidden), -1, -1) for x in at.view.rotation)
    cos, sin = (widen(of_rows(x, at.batch)) for x in whole)
    half = cos.shape[-1] // 2
    ones = cos + sin * torch.cat([-sin.new_ones(half), sin.new_ones(half)])
    with exact(ones.device):
        return take(ones, at.text(signal.rows)[0]) @ take(ones, at.visual).mT * at.view.attended[signal.layer].scaling


def _flat_keys(attended: Attended, batch: Tensor) -> Tensor:
    keys = of_rows(attended.key[:, :, : attended.query.shape[2]], batch)
    return rearrange(keys, "g h n d -> g n (h d)")
