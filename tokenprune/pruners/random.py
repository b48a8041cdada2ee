"""Random: the baseline that every comparison needs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.errors import ConfigError
from tokenprune.pruners.base import ScorePruner, register_pruner
from tokenprune.types import VisualTokens


@register_pruner("random")
@dataclass(frozen=True, kw_only=True)
class Random(ScorePruner):
    """Keeps tokens drawn uniformly without replacement, other ones for each image.

    The draw depends on the seed and on the image alone, not on the batch or on earlier calls.

    Attributes:
        seed: another seed draws other tokens, an integer of at least 0.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise ConfigError(f"option 'seed' is {self.seed!r}; it must be an integer of at least 0")

    def score(self, tokens: VisualTokens) -> Tensor:
        """(B, N) uniform in [0, 1); 0 for padding."""
        valid = tokens.valid_or_all.cpu()
        scores = torch.zeros(valid.shape)
        for row, content in enumerate(_contents(tokens, valid)):
            scores[row, valid[row]] = self._draw(content, int(valid[row].sum()))
        return scores.to(tokens.features.device)

    def _draw(self, content: bytes, number: int) -> Tensor:
        digest = hashlib.blake2b(content, key=str(self.seed).encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return torch.rand(number, generator=generator)


def _contents(tokens: VisualTokens, valid: Tensor) -> list[bytes]:
    """What stands for each row: its id, or the bytes of its valid features if it has none."""
    if tokens.row_ids is not None:
        return [str(number).encode() for number in tokens.row_ids.tolist()]
    features = tokens.features.detach().float().cpu()
    return [row[counts].numpy().tobytes() for row, counts in zip(features, valid, strict=True)]
