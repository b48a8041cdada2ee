"""How many visual tokens may stay. The only place that turns a ratio into a count."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.errors import BudgetError


@dataclass(frozen=True)
class Budget:
    """A budget per row of visual tokens (an image, a tile, a frame, as the adapter documents).

    Give exactly one.

    Attributes:
        keep_tokens: how many visual tokens stay, at least 1.
        keep_ratio: which share of them stays, in (0, 1]; the count is rounded to the nearest integer (half to even, as
            DivPrune's code does) and is at least 1.

    Raises:
        BudgetError: if both or none are given, or one is out of its range.
    """

    keep_tokens: int | None = None
    keep_ratio: float | None = None

    def __post_init__(self) -> None:
        if (self.keep_tokens is None) == (self.keep_ratio is None):
            given = "both" if self.keep_tokens is not None else "neither"
            raise BudgetError(f"budget: give either keep_tokens or keep_ratio, got {given}")
        if self.keep_tokens is not None and (type(self.keep_tokens) is not int or self.keep_tokens < 1):
            raise BudgetError(f"budget: keep_tokens must be an integer of at least 1, got {self.keep_tokens!r}")
        if self.keep_ratio is not None:
            number = isinstance(self.keep_ratio, int | float) and not isinstance(self.keep_ratio, bool)
            if not number or not 0 < self.keep_ratio <= 1:
                raise BudgetError(f"budget: keep_ratio must be a number in (0, 1], got {self.keep_ratio!r}")

    def resolve(self, num_tokens: int) -> int:
        """The number of visual tokens that stay.

        Args:
            num_tokens: visual tokens in the row.

        Raises:
            BudgetError: if ``keep_tokens`` exceeds ``num_tokens``.
        """
        if self.keep_ratio is not None:
            return max(1, round(self.keep_ratio * num_tokens))
        assert self.keep_tokens is not None
        if self.keep_tokens > num_tokens:
            raise BudgetError(
                f"budget: keep_tokens={self.keep_tokens} exceeds the {num_tokens} visual tokens there are"
            )
        return self.keep_tokens

    def __str__(self) -> str:
        return f"keep_tokens={self.keep_tokens}" if self.keep_tokens is not None else f"keep_ratio={self.keep_ratio:g}"
