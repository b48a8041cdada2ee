"""How many visual tokens may stay. The only place that turns a ratio into a count."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, fields

from tokenprune.errors import BudgetError


@dataclass(frozen=True)
class Budget:
    """A budget per row of visual tokens (an image, a tile, a frame, as the adapter documents).

    Give exactly one. For pruners of several stages the first two count what is left after the last.

    Attributes:
        keep_tokens: how many visual tokens stay, at least 1.
        keep_ratio: which share of them stays, in (0, 1]; the count is rounded to the nearest integer (half to even, as
            DivPrune's code does) and is at least 1.
        average_tokens: visual tokens in a decoder layer, mean over the layers, at least 1; the smallest count that
            reaches it stays.

    Raises:
        BudgetError: if not exactly one is given, or it is out of its range.
    """

    keep_tokens: int | None = None
    keep_ratio: float | None = None
    average_tokens: float | None = None

    def __post_init__(self) -> None:
        if len(self.to_mapping()) != 1:
            *names, last = (f.name for f in fields(self))
            got = " and ".join(self.to_mapping()) or "none"
            raise BudgetError(f"give exactly one of {', '.join(names)} and {last}, got {got}")
        if self.keep_tokens is not None and (type(self.keep_tokens) is not int or self.keep_tokens < 1):
            raise BudgetError(f"keep_tokens must be an integer of at least 1, got {self.keep_tokens!r}")
        if self.keep_ratio is not None and not (_is_number(self.keep_ratio) and 0 < self.keep_ratio <= 1):
            raise BudgetError(f"keep_ratio must be a number in (0, 1], got {self.keep_ratio!r}")
        if self.average_tokens is not None and not (_is_number(self.average_tokens) and self.average_tokens >= 1):
            raise BudgetError(f"average_tokens must be a number of at least 1, got {self.average_tokens!r}")

    def resolve(self, num_tokens: int, mean: Callable[[int], float] = float) -> int:
        """The number of visual tokens that stay.

        Args:
            num_tokens: visual tokens in the row.
            mean: tokens in a layer, mean over the layers, if so many stay; it grows with its argument. By default
                tokens leave before the first layer.

        Raises:
            BudgetError: if more should stay than there are, or the layers before the pruning spend ``average_tokens``
                already.
        """
        if self.keep_ratio is not None:
            return max(1, round(self.keep_ratio * num_tokens))
        (wanted,) = self.to_mapping().values()
        if wanted > num_tokens:
            raise BudgetError(f"{self} exceeds the {num_tokens} visual tokens there are")
        if self.keep_tokens is not None:
            return self.keep_tokens
        keep = bisect_left(range(num_tokens), wanted, key=mean)
        if keep == 0:
            raise BudgetError(
                f"{self} cannot be met: with nothing kept, the layers before the pruning stages spend "
                f"{mean(0):g} of {num_tokens} visual tokens on average; raise it, or prune at an earlier layer"
            )
        return keep

    def at_most(self, num_tokens: int) -> Budget:
        """The budget for a row that may have fewer visual tokens than it allows: then all stay."""
        wanted = self.keep_tokens or self.average_tokens
        return Budget(keep_ratio=1.0) if wanted is not None and wanted > num_tokens else self

    def then(self, following: Budget) -> Budget:
        """The budget that leaves what a ``following`` one leaves of what this one leaves.

        Where two ratios are rounded one after the other, it may differ from them by a token or so.

        Raises:
            BudgetError: if one is ``average_tokens``, which does not tell what is left.
        """
        if following.keep_tokens is not None:
            return following
        if self.keep_tokens is not None and following.keep_ratio is not None:
            return Budget(keep_tokens=following.resolve(self.keep_tokens))
        if self.keep_ratio is not None and following.keep_ratio is not None:
            return Budget(keep_ratio=self.keep_ratio * following.keep_ratio)
        raise BudgetError(f"{self} and {following} of what it leaves are not one budget")

    def to_mapping(self) -> dict[str, int | float]:
        """What was given, as one would write it in YAML."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def __str__(self) -> str:
        return ", ".join(f"{key}={str(value).removesuffix('.0')}" for key, value in self.to_mapping().items())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
