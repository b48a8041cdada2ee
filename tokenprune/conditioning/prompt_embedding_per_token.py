"""Relevance by the LLM's own input embeddings, averaged over the instruction after the cosine and not before.

Paper: https://arxiv.org/abs/2506.10967 (CDPruner, section 3.3, second source)
Code: OpenVINO GenAI's version of CDPruner averages so; the paper averages the embeddings, see ``prompt_embedding``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenprune.conditioning.base import CONDITIONINGS, Scope
from tokenprune.conditioning.prompt_embedding import PromptEmbedding, prompt_tokens
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import mean_cosine


@CONDITIONINGS.register("prompt_embedding_per_token", paper="https://arxiv.org/abs/2506.10967")
@dataclass(frozen=True)
class PromptEmbeddingPerToken(PromptEmbedding):
    """Mean cosine of a visual token to each of the LLM's input embeddings of the instruction."""

    def _relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        prompt, mask = prompt_tokens(tokens, scope, self.question)
        return mean_cosine(tokens.features, prompt, mask)
