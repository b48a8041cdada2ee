"""Relevance by whatever a family has: its paired text tower, else the LLM's own input embeddings of the instruction.

Paper: https://arxiv.org/abs/2506.10967 (CDPruner, section 3.3)
Differs: nothing; the paper takes the first source for LLaVA and the second for Qwen2.5-VL.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from tokenprune.conditioning.base import CONDITIONINGS, Conditioning, Scope
from tokenprune.conditioning.clip_text import CLIPText
from tokenprune.conditioning.prompt_embedding import PromptEmbedding
from tokenprune.core.signals import OneOf, PairedImage, PairedText, PromptEmbeds, PromptMask, Question, Signal
from tokenprune.core.tokens import VisualTokens


@CONDITIONINGS.register("auto", paper="https://arxiv.org/abs/2506.10967")
@dataclass(frozen=True)
class Auto(Conditioning):
    """What ``clip_text`` gives where a text tower is known, else what ``prompt_embedding`` gives.

    Each comes with its own sign.

    Attributes:
        question: ``own``: what is asked; ``other``: another question that the sample comes with, which shows what
            conditioning is worth. The prompt stays as it is.
    """

    question: Question = "own"

    def __post_init__(self) -> None:
        _ = self._sources

    @cached_property
    def _sources(self) -> tuple[CLIPText, PromptEmbedding]:
        return CLIPText(self.question), PromptEmbedding(self.question)

    @property
    def requires(self) -> frozenset[Signal]:
        image = OneOf(PairedImage("clip"), PromptEmbeds(self.question))
        return frozenset({image, OneOf(PairedText("clip", self.question), PromptMask(self.question))})

    def _source(self, tokens: VisualTokens) -> Conditioning:
        paired, prompt = self._sources
        given = any(tokens.get(signal) is not None for signal in paired.requires)
        return paired if given or tokens.get(PromptEmbeds(self.question)) is None else prompt

    def sign_for(self, tokens: VisualTokens) -> int:
        return self._source(tokens).sign

    def _relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        return self._source(tokens).relevance(tokens, scope)
