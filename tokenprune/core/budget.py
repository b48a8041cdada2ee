"""How many visual tokens may stay. The only place that turns a ratio into a count."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from tokenprune.core.errors import BudgetError, BudgetExceedsError

KINDS = ("keep_tokens", "keep_ratio", "average_tokens", "flops")


@dataclass(frozen=True)
class Budget:
    """A budget of visual tokens for each image or video, or for each frame, as the adapter's scope says.

    Give exactly one of the first four. For pruners of several stages the first two count what is left after the last.

    Attributes:
        keep_tokens: how many visual tokens stay, at least 1.
        keep_ratio: which share of them stays, in (0, 1]; the count is rounded to the nearest integer (half to even, as
            DivPrune's code does) and is at least 1.
        average_tokens: visual tokens in a decoder layer, mean over the layers, at least 1; the smallest count that
            reaches it stays.
        flops: most FLOPs of the decoder layers in the prefill of one prompt with one row of visual tokens, as
            ``OperationPlan.prefill_flops`` counts them; the largest count that does not exceed it stays.
        text_tokens: all other tokens of the prompt that ``flops`` is for; with 0 it counts visual tokens alone.

    Raises:
        BudgetError: if not exactly one is given, or it is out of its range.
    """

    keep_tokens: int | None = None
    keep_ratio: float | None = None
    average_tokens: float | None = None
    flops: float | None = None
    text_tokens: int = 0

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            *names, last = KINDS
            got = " and ".join(given) or "none"
            raise BudgetError(f"give exactly one of {', '.join(names)} and {last}, got {got}")
        if self.keep_tokens is not None and (type(self.keep_tokens) is not int or self.keep_tokens < 1):
            raise BudgetError(f"keep_tokens must be an integer of at least 1, got {self.keep_tokens!r}")
        if self.keep_ratio is not None and not (_is_number(self.keep_ratio) and 0 < self.keep_ratio <= 1):
            raise BudgetError(f"keep_ratio must be a number in (0, 1], got {self.keep_ratio!r}")
        if self.average_tokens is not None and not (_is_number(self.average_tokens) and self.average_tokens >= 1):
            raise BudgetError(f"average_tokens must be a number of at least 1, got {self.average_tokens!r}")
        if self.flops is not None and not (_is_number(self.flops) and 0 < self.flops < inf):
            raise BudgetError(f"flops must be a positive number, got {self.flops!r}")
        if type(self.text_tokens) is not int or self.text_tokens < 0:
            raise BudgetError(f"text_tokens must be an integer of at least 0, got {self.text_tokens!r}")
        if self.text_tokens and self.flops is None:
            raise BudgetError(f"text_tokens goes with flops, but the budget is of {self.kind}")

    @property
    def kind(self) -> str:
        """Name of the limit that is given, such as ``keep_tokens``."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def value(self) -> int | float:
        """Number of the limit that is given: tokens, a share of them, or FLOPs."""
        found: int | float = getattr(self, self.kind)
        return found

    def resolve(self, num_tokens: int, spent: Callable[[int], float] = float) -> int:
        """The number of visual tokens that stay under the budget.

        Args:
            num_tokens: visual tokens in the row.
            spent: of ``average_tokens`` or ``flops``, if so many stay; it grows with its argument. The default is right
                for the former where tokens leave before the first layer.

        Raises:
            BudgetExceedsError: if more should stay than there are.
            BudgetError: if the budget is spent before anything leaves.
        """
        if self.keep_ratio is not None:
            return max(1, round(self.keep_ratio * num_tokens))
        if self.flops is not None:
            return self._within(self.flops, num_tokens, spent)
        wanted = self.value
        if wanted > num_tokens:
            raise BudgetExceedsError(f"{self} exceeds the {num_tokens} visual tokens there are")
        if self.keep_tokens is not None:
            return self.keep_tokens
        keep = bisect_left(range(num_tokens), wanted, key=spent)
        if keep == 0:
            raise BudgetError(
                f"{self} cannot be met: with nothing kept, the layers before the pruning stages spend "
                f"{spent(0):g} of {num_tokens} visual tokens on average; raise it, or prune at an earlier layer"
            )
        return keep

    def _within(self, flops: float, num_tokens: int, spent: Callable[[int], float]) -> int:
        """The largest number of tokens that does not cost more."""
        if flops > spent(num_tokens):
            cost = f"{spent(num_tokens):.6g} that all {num_tokens} visual tokens cost"
            raise BudgetExceedsError(f"{self} exceeds the {cost}")
        keep = bisect_right(range(num_tokens + 1), flops, key=spent) - 1
        if keep < 1:
            raise BudgetError(
                f"{self} cannot be met: with one visual token kept, the decoder layers cost {spent(1):.6g}; raise it"
            )
        return keep

    def then(self, following: Budget) -> Budget:
        """The budget that leaves what a ``following`` one leaves of what this one leaves.

        Where two ratios are rounded one after the other, it may differ from them by a token or so.

        Raises:
            BudgetError: if one is ``average_tokens`` or ``flops``, which do not tell what is left.
        """
        if following.keep_tokens is not None:
            return following
        if self.keep_tokens is not None and following.keep_ratio is not None:
            return Budget(keep_tokens=following.resolve(self.keep_tokens))
        if self.keep_ratio is not None and following.keep_ratio is not None:
            return Budget(keep_ratio=self.keep_ratio * following.keep_ratio)
        raise BudgetError(f"{self} and {following} of what it leaves are not one budget")

    def to_mapping(self) -> dict[str, int | float]:
        """The budget as one would write it in YAML, for example ``keep_tokens: 64``."""
        text = {"text_tokens": self.text_tokens} if self.text_tokens else {}
        return {self.kind: self.value, **text}

    def __str__(self) -> str:
        return ", ".join(f"{key}={str(value).removesuffix('.0')}" for key, value in self.to_mapping().items())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
