"""How many visual tokens stay, and how they are shared out over segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tokenprune.core.errors import BudgetError


@dataclass(frozen=True)
class Quota:
    """A number of visual tokens to keep of an image or a video that has segments, such as tiles or frames.

    Attributes:
        total: tokens that stay.
        sizes: tokens of each segment.

    Raises:
        BudgetError: if the segments have fewer tokens.
    """

    total: int
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.total <= sum(self.sizes):
            raise BudgetError(f"cannot keep {self.total} of {sum(self.sizes)} visual tokens")

    def proportional(self) -> list[int]:
        """Counts of the segments in proportion to their sizes, rounded at the ends of the segments."""
        ends = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        shares = [round(self.total * end / ends[-1]) for end in ends]
        return [after - before for before, after in pairwise(shares)]

    def equal(self) -> list[int]:
        """Counts of the segments that are alike, as far as the segments have so many tokens."""
        return self.shares([1.0] * len(self.sizes))

    def shares(self, weights: Tensor | Sequence[float]) -> list[int]:
        """Counts of the segments by the weights of a method; they add up to the total, none above its segment's size.

        What a segment cannot give goes to the others by their weights. What is left by rounding down goes to the
        largest remainders, the first of equal ones.

        Args:
            weights: (S,) of the segments, at least 0; if those that still have tokens weigh nothing, they count alike.

        Returns:
            S counts, tokens.

        Raises:
            BudgetError: if a weight is negative or no number, or their number is not that of the segments.
        """
        weight = torch.as_tensor(weights, dtype=torch.float64).cpu()
        size = torch.tensor(self.sizes, dtype=torch.float64)
        if weight.shape != size.shape or not bool((weight >= 0).all()) or not bool(weight.isfinite().all()):
            raise BudgetError(f"weights must be {len(self.sizes)} numbers of at least 0, got {weight.tolist()}")
        counts, free = torch.zeros_like(size), torch.ones_like(size, dtype=torch.bool)
        while True:
            own = torch.where(free, weight, 0.0)
            own = own / own.max() if bool(own.any()) else free.double()  # no matter how small they are
            exact = own * ((self.total - counts[~free].sum()) / own.sum())
            full = free & (exact >= size)
            if not bool(full.any()):
                break
            counts, free = torch.where(full, size, counts), free & ~full
        counts = torch.where(free, exact.floor(), counts)
        left = self.total - int(counts.sum())
        remainder = torch.where(free, exact - exact.floor(), -1.0)
        counts[remainder.argsort(descending=True, stable=True)[:left]] += 1
        return [int(count) for count in counts]
