"""Which patches are left behind the stages in a vision tower."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from einops import repeat
from torch import Tensor

from tokenprune.core.stages import Stage
from tokenprune.functional.vectors import take


@dataclass(frozen=True, eq=False)
class PatchesLeft:
    """Patches of some pictures that are left behind stages.

    All pictures have equal numbers, and what is left behind a stage is a part of what was before it. So a number of
    patches says which they are.

    Attributes:
        number: N, patches of a picture before the first stage.
        stages: by the stage that they are left behind, (I, n) long each: patches by their number in the picture,
            ascending.
    """

    number: int
    stages: dict[Stage, Tensor] = field(default_factory=dict)

    @property
    def history(self) -> tuple[int, ...]:
        """How many patches of a picture arrived at each stage, and last how many are left."""
        return (self.number, *(kept.shape[1] for kept in self.stages.values()))

    def of(self, count: int, pictures: int, device: torch.device) -> Tensor:
        """Which patches (I, count) long so many are."""
        for kept in self.stages.values():
            if kept.shape[1] == count:
                return kept.to(device)
        return repeat(torch.arange(count, device=device), "n -> i n", i=pictures)

    def last(self, x: Tensor) -> Tensor:
        """What patches (I, m, C) behind any stage have, of those that are left behind the last one, (I, n, C)."""
        kept = list(self.stages.values())[-1:]
        if not kept or kept[0].shape[1] == x.shape[1]:
            return x
        before = self.of(x.shape[1], len(x), x.device).contiguous()
        index = torch.searchsorted(before, kept[0].to(x.device))
        return take(x, index)

    def spread(self, x: Tensor) -> Tensor:
        """What patches (I, m, ...) behind any stage have, at the places of all patches: (I, N, ...), 0 elsewhere."""
        if x.shape[1] == self.number:
            return x
        index = self.of(x.shape[1], len(x), x.device)
        rows = torch.arange(len(x), device=x.device)[:, None].expand_as(index)
        return x.new_zeros(len(x), self.number, *x.shape[2:]).index_put((rows, index), x)
