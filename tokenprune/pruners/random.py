"""Random: the baseline that every comparison needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.core.errors import ConfigError
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import PRE_LLM, Stage, decoder
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.draws import contents, uniform
from tokenprune.pruners.base import ScorePruner, register_pruner


@register_pruner("random", idea="baseline")
@dataclass(frozen=True, kw_only=True)
class Random(ScorePruner):
    """Keeps tokens drawn uniformly without replacement, other ones for each image.

    The draw depends on the seed, the layer and the image alone, not on the batch or on earlier calls.

    Attributes:
        seed: another seed draws other tokens, an integer of at least 0.
        layer: decoder layer (0-based) at whose input tokens leave, the baseline of methods inside the LLM; None: before
            the LLM.
    """

    seed: int = 0
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise ConfigError(f"option 'seed' is {self.seed!r}; it must be an integer of at least 0")

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """The input of ``layer``, or before the LLM."""
        return (PRE_LLM if self.layer is None else decoder(self.layer),)

    def score(self, tokens: VisualTokens) -> Tensor:
        """Random scores, (B, N), uniform in [0, 1); 0 for padding."""
        # With the layer, so that a draw at one stage tells nothing about that at another.
        key = f"{self.seed}" if self.layer is None else f"{self.seed} {self.layer}"
        valid = tokens.valid_or_all.cpu()
        scores = torch.zeros(valid.shape, dtype=torch.float32)
        for row, content in enumerate(contents(tokens.features, tokens.valid, tokens.content_ids())):
            scores[row, valid[row]] = uniform(content, int(valid[row].sum()), key)
        return scores.to(tokens.features.device)
