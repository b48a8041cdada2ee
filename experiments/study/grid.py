"""The depth-wise policies over one base pruner, as arrays, and who is chosen from them under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from study import agreement
from study.results import Header, Row
from tokenprune.core.errors import DataError


@dataclass(frozen=True, eq=False)
class Grid:
    """Policies that compete.

    Attributes:
        header: of the study.
        base: name of the pruner.
        rows: (P,) the policies, in the order of their depths and tokens.
    """

    header: Header
    base: str
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, header: Header, rows: Sequence[Row], base: str) -> Grid:
        """That of a base; policies that drop no token before the LLM may stand under another base's name.

        Raises:
            DataError: if there is none.
        """
        found = {
            (row.attention, row.mlp, row.tokens): row
            for row in rows
            if row.set == "depth_wise" and (row.base == base or row.tokens == header.visual_tokens)
        }
        if not any(row.base == base for row in found.values()):
            raise DataError(f"the results hold no depth-wise policies over {base!r}")
        return cls(header, base, tuple(found[key] for key in sorted(found)))

    def only(self, tokens: set[int]) -> Grid:
        """The policies with these numbers of visual tokens."""
        return Grid(self.header, self.base, tuple(row for row in self.rows if row.tokens in tokens))

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(P, 3) depth of attention, of the MLP, visual tokens."""
        return np.array([(row.attention, row.mlp, row.tokens) for row in self.rows])

    @cached_property
    def flops(self) -> NDArray[np.float64]:
        """(P,) cost."""
        return np.array([row.flops for row in self.rows])

    @cached_property
    def divergence(self) -> NDArray[np.float64]:
        """(P,) mean KL at the first token on the validation questions, nats."""
        return np.array([row.divergence for row in self.rows])

    @cached_property
    def test_divergence(self) -> NDArray[np.float64]:
        """(P,) the same on the test questions."""
        return np.array([row.test_first_token.mean() for row in self.rows])

    @cached_property
    def accuracy(self) -> NDArray[np.float64]:
        """(P,) on the test questions."""
        return np.array([row.accuracy for row in self.rows])

    def choose(self, estimate: NDArray[np.float64], budget: float) -> int:
        """Index of the policy within a budget that has the least estimate, (P,)."""
        return agreement.choose(estimate, self.flops, budget)

    def edge(self, budget: float) -> NDArray[np.bool_]:
        """(P,) the policies that use a budget up, see ``agreement.edge``."""
        return agreement.edge(self.sizes, self.flops, budget)

    def at(self, attention: int, mlp: int, tokens: int) -> Row:
        """One policy.

        Raises:
            DataError: if it was not measured.
        """
        for row in self.rows:
            if (row.attention, row.mlp, row.tokens) == (attention, mlp, tokens):
                return row
        raise DataError(f"the results hold no policy ({attention}, {mlp}, {tokens}) over {self.base!r}")
