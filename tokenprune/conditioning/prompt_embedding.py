"""Relevance by the LLM's own input embeddings of the instruction, for models without a paired text tower.

Paper: https://arxiv.org/abs/2506.10967 (CDPruner, section 3.3, second source)
Differs: the paper's code for such models is unreleased; this follows its text. Norms are taken in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.conditioning.base import CONDITIONINGS, Conditioning, Scope, check_question, text_vectors
from tokenprune.core.errors import SelectionError
from tokenprune.core.signals import PromptEmbeds, PromptMask, Question, Signal
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import mean_cosine, widen


@CONDITIONINGS.register("prompt_embedding", paper="https://arxiv.org/abs/2506.10967")
@dataclass(frozen=True)
class PromptEmbedding(Conditioning):
    """Cosine of a visual token to the mean of the LLM's input embeddings of the instruction.

    Attributes:
        question: ``own``: what is asked; ``other``: another question that the sample comes with, which shows what
            conditioning is worth. The prompt stays as it is.
    """

    question: Question = "own"

    def __post_init__(self) -> None:
        check_question(self.question)

    @property
    def requires(self) -> frozenset[Signal]:
        return frozenset({PromptEmbeds(self.question), PromptMask(self.question)})

    def _relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        prompt, mask = prompt_tokens(tokens, scope, self.question)
        mean = (prompt * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        return mean_cosine(tokens.features, mean)


def prompt_tokens(tokens: VisualTokens, scope: Scope, question: Question) -> tuple[Tensor, Tensor]:
    """Embeddings of the instruction, and which of them are not padding.

    Args:
        tokens: with the signal ``prompt_embeds``; without ``prompt_mask`` nothing counts as padding.
        scope: ``row``: a prompt for each row; ``batch``: one prompt made of all.
        question: ``own`` or ``other``.

    Returns:
        (B, P, D), 0 for padding, and (B, P) bool; with scope ``batch`` (1, B P, D) and (1, B P).

    Raises:
        SelectionError: if a signal is missing, has a shape that does not fit, or a prompt has no token.
    """
    prompt = widen(text_vectors(tokens, PromptEmbeds(question), width=tokens.features.shape[2]))
    given = tokens.get(PromptMask(question))
    mask = prompt.new_ones(prompt.shape[:2], dtype=torch.bool) if given is None else given.bool()
    if mask.shape != prompt.shape[:2]:
        raise SelectionError(f"signal 'prompt_mask' must be {tuple(prompt.shape[:2])}, got {tuple(mask.shape)}")
    if scope == "batch":
        prompt, mask = prompt.flatten(0, 1)[None], mask.flatten()[None]
    if not bool(mask.any(1).all()):
        raise SelectionError("signal 'prompt_mask' leaves a prompt without a token")
    return prompt.masked_fill(~mask[..., None], 0), mask
