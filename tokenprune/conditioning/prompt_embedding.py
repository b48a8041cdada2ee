"""Relevance by the LLM's own input embeddings of the instruction, for models without a paired text tower.

Paper: https://arxiv.org/abs/2506.10967 (CDPruner, section 3.3, second source)
Differs: the paper's code for such models is unreleased; this follows its text. Norms are taken in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.conditioning.base import CONDITIONINGS, Conditioning, Scope, text_vectors
from tokenprune.core.errors import SelectionError
from tokenprune.core.signals import Signal
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import mean_cosine, widen


@CONDITIONINGS.register("prompt_embedding", paper="https://arxiv.org/abs/2506.10967")
@dataclass(frozen=True)
class PromptEmbedding(Conditioning):
    """Cosine of a visual token to the mean of the LLM's input embeddings of the instruction."""

    requires: ClassVar[frozenset[Signal]] = frozenset({Signal.PROMPT_EMBEDS, Signal.PROMPT_MASK})

    def _relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        prompt, mask = prompt_tokens(tokens, scope)
        mean = (prompt * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        return mean_cosine(tokens.features, mean)


def prompt_tokens(tokens: VisualTokens, scope: Scope) -> tuple[Tensor, Tensor]:
    """Embeddings (B, P, D) of the instruction and (B, P) bool, which of them are not padding (none is without a mask).

    With scope ``batch``, (1, B P, D) and (1, B P): one prompt made of all.

    Raises:
        SelectionError: if a signal is missing, has a shape that does not fit, or a prompt has no token.
    """
    prompt = widen(text_vectors(tokens, Signal.PROMPT_EMBEDS, width=tokens.features.shape[2]))
    mask = tokens.signals.get(Signal.PROMPT_MASK, prompt.new_ones(prompt.shape[:2], dtype=torch.bool)).bool()
    if mask.shape != prompt.shape[:2]:
        raise SelectionError(f"signal 'prompt_mask' must be {tuple(prompt.shape[:2])}, got {tuple(mask.shape)}")
    if scope == "batch":
        prompt, mask = prompt.flatten(0, 1)[None], mask.flatten()[None]
    if not bool(mask.any(1).all()):
        raise SelectionError("signal 'prompt_mask' leaves a prompt without a token")
    return prompt.masked_fill(~mask[..., None], 0), mask
