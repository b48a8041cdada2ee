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
        if type(self.seed) is not int or self.seed < 0:
            raise ConfigError(f"option 'seed' is {self.seed!r}; it must be an integer of at least 0")

    def score(self, tokens: VisualTokens) -> Tensor:
        """(B, N) uniform in [0, 1)."""
        rows = [self._draw(content, tokens.num_tokens) for content in _contents(tokens)]
        return torch.stack(rows).to(tokens.features.device)

    def _draw(self, content: bytes, number: int) -> Tensor:
        digest = hashlib.blake2b(content, key=str(self.seed).encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return torch.rand(number, generator=generator)


def _contents(tokens: VisualTokens) -> list[bytes]:
    """What stands for each row: its id, or the bytes of its features if it has none."""
    if tokens.row_ids is not None:
        return [str(number).encode() for number in tokens.row_ids.tolist()]
    return [row.numpy().tobytes() for row in tokens.features.detach().float().cpu()]
