"""What ``tokenprune.prune`` reports about the calls in its block."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tokenprune.errors import TokenPruneError
from tokenprune.types import TokenSelection


@dataclass(frozen=True, eq=False)
class PrunedCall:
    """One call of the model whose images were pruned.

    Attributes:
        selection: what stayed, one row an image.
        counts: visual tokens (before, after) of each batch row.
        seconds: of ``vision`` (tower and projector), ``selection`` (signals and pruner) and ``prefill`` (the LLM on the
            shortened prompt).
    """

    selection: TokenSelection
    counts: list[tuple[int, int]]
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Trace:
    """The calls in a block.

    Attributes:
        calls: those that brought images, in order.
    """

    calls: list[PrunedCall] = field(default_factory=list)

    @property
    def last(self) -> PrunedCall:
        """The last call.

        Raises:
            TokenPruneError: if there was none.
        """
        if not self.calls:
            raise TokenPruneError("nothing was pruned: the model was not called with an image in this block and thread")
        return self.calls[-1]

    @property
    def keep(self) -> Tensor:
        """(I, K) long: indices of the visual tokens that stayed in the last call, one row an image."""
        return self.last.selection.keep

    @property
    def counts(self) -> list[tuple[int, int]]:
        """Visual tokens (before, after) of each batch row in the last call."""
        return self.last.counts

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of ``vision``, ``selection`` and ``prefill`` in the last call."""
        return self.last.seconds
