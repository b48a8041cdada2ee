"""MMTok: tokens that together cover the words of the question and the patches of the picture.

Paper: https://arxiv.org/abs/2508.18264
Code: https://github.com/Ironieser/MMTok (Apache-2.0)
Differs:
    - The words are all tokens of the question. The code for LLaVA keeps its keywords alone, without 47 stop words and
      two answer formats, which the signal of the question cannot tell apart yet; the code for Qwen has all of them,
      behind the word "Question:". So kept tokens are the code's given the same words.
    - Each prompt has its own question; the code has one for a call.
    - Padding that a processor squares pictures with may be kept; the code for LLaVA leaves it out.
    - The code's option of a temperature for Qwen is ``text_temperature=0.01``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.conditioning.prompt_embedding import prompt_tokens
from tokenprune.core.errors import ConfigError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import PromptEmbeds, PromptMask, Signal, TowerStates
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.coverage import max_coverage
from tokenprune.functional.gram import gram
from tokenprune.functional.vectors import unit, widen
from tokenprune.pruners.base import register_pruner
from tokenprune.pruners.dense import DensePruner


@register_pruner("mmtok", paper="https://arxiv.org/abs/2508.18264", idea="coverage")
@dataclass(frozen=True, kw_only=True)
class MMTok(DensePruner):
    """Keeps tokens that cover the words of the question and the patches of the picture, picked greedily.

    Attributes:
        alpha: weight of the patches against the words, at least 0.
        text_temperature: of the softmax by which a word is shared out over the tokens, above 0.
        image_temperature: of the softmax by which a patch is, above 0.
    """

    alpha: float = 0.5
    text_temperature: float = 0.02
    image_temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < math.inf:
            raise ConfigError(f"option 'alpha' is {self.alpha!r}; it must be a number of at least 0")
        for option in ("text_temperature", "image_temperature"):
            if not 0 < (value := getattr(self, option)) < math.inf:
                raise ConfigError(f"option {option!r} is {value!r}; it must be a number above 0")

    @property
    def requires(self) -> frozenset[Signal]:
        """The question as the LLM reads it, and hidden states of the vision tower."""
        return frozenset({PromptEmbeds(), PromptMask(), TowerStates()})

    @torch.no_grad()
    def cover(self, tokens: VisualTokens) -> Tensor:
        """How well each token covers words and patches, (B, P + N, N): each word 1/P in all, each patch alpha/N."""
        words, mask = prompt_tokens(tokens, "row", "own")
        by_words = similarity(words, tokens.features, self.text_temperature) * mask[..., None]
        by_words /= mask.sum(1)[:, None, None]
        alike = gram(unit(widen(tokens.signal(TowerStates())))).div_(self.image_temperature)
        (batch, count, n), kind = by_words.shape, torch.promote_types(by_words.dtype, alike.dtype)
        cover = torch.empty(batch, count + n, n, dtype=kind, device=alike.device)
        cover[:, :count] = by_words
        by_patches = cover[:, count:]
        for row, out in zip(alike, by_patches, strict=True):  # in place: new pages of memory take longer than the sums
            torch.softmax(row, 1, dtype=kind, out=out)
        by_patches.div_(n).mul_(self.alpha)
        return cover

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        return TokenSelection.from_order(max_coverage(self.cover(tokens), k), tokens.num_tokens)


def similarity(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """The softmax over ``y`` (B, N, D) of the cosine of each ``x`` (B, M, D) to it, (B, M, N)."""
    x, y = unit(widen(x)), unit(widen(y))
    wide = torch.promote_types(x.dtype, y.dtype)
    return (x.to(wide) @ y.to(wide).mT / temperature).softmax(2)
