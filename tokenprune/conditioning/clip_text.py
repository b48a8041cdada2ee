"""Relevance by the text tower that CLIP trained together with the vision tower.

Paper: https://arxiv.org/abs/2506.10967 (CDPruner, section 3.3)
Code: https://github.com/Theia-4869/CDPruner (Apache-2.0)
Differs: nothing in the values; the sign is the pruner's option. The default -1 is that of the code: the cosine of
    CLIP's patch features to the text is inverted (the paper's equation 5 has it positive; its authors call the
    inversion a CLIP phenomenon). For SigLIP nobody has published which sign holds, so try both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenprune.conditioning.base import CONDITIONINGS, Conditioning, Scope, check_question, per_token, text_vectors
from tokenprune.core.signals import Library, PairedImage, PairedText, Question, Signal
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import mean_cosine


@CONDITIONINGS.register("clip_text", paper="https://arxiv.org/abs/2506.10967")
@dataclass(frozen=True)
class CLIPText(Conditioning):
    """Mean cosine of a patch to the pieces of the question, in the space of a Hugging Face CLIP or SigLIP.

    Attributes:
        question: ``own``: what is asked; ``other``: another question that the sample comes with, which shows what
            conditioning is worth. The prompt stays as it is.
    """

    library: ClassVar[Library] = "clip"
    sign: ClassVar[int] = -1
    question: Question = "own"

    def __post_init__(self) -> None:
        check_question(self.question)

    @property
    def requires(self) -> frozenset[Signal]:
        return frozenset({PairedImage(self.library), PairedText(self.library, self.question)})

    def _relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        patches = per_token(tokens, PairedImage(self.library))
        text = PairedText(self.library, self.question)
        segments = text_vectors(tokens, text, width=patches.shape[2])
        return mean_cosine(patches, segments if scope == "row" else segments.flatten(0, 1)[None])
