"""Greedy MAP inference of a determinantal point process.

Paper: https://arxiv.org/abs/1709.05135 (Chen, Zhang, Zhou: the greedy algorithm with an incremental Cholesky factor)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenprune.core.precision import exact
from tokenprune.functional.greedy import NEVER, Array, Criterion, Loop, lazy_greedy
from tokenprune.functional.kernels import KernelMatrix

ROUNDING = 100  # ulps of L_ii; the gain of a token that the picks already span is below that


def greedy_map(matrix: KernelMatrix, k: int, valid: Tensor | None = None, loop: Loop = lazy_greedy) -> Tensor:
    """The set A that greedily maximises log det L_A.

    With C the rows of the incomplete Cholesky factor, log det grows by the log of d_i = L_ii - sum_u C_ui^2 if token i
    joins, and pick j adds the row C_i = (L_ji - sum_u C_uj C_ui) / sqrt(d_j).

    Args:
        matrix: L, of N tokens in each of B rows.
        k: size of the set, tokens; at most the valid tokens of any row.
        valid: (B, N) bool, False for what may not be picked.
        loop: how the picks are found.

    Returns:
        (B, k) distinct token indices in the order of the picks; beyond the rank of L, the lowest indices. Of L only the
        picks' rows are ever computed, so memory is O(N k + N D) a row.
    """
    with exact(matrix.quality.device):  # for who calls this without a pruner
        diagonal = matrix.diagonal()
        floor = diagonal * (ROUNDING * torch.finfo(diagonal.dtype).eps)
        gain = diagonal if valid is None else diagonal.masked_fill(~valid, NEVER)
        return loop(_LogDeterminant(matrix, k), gain, floor, k)


class _LogDeterminant(Criterion):
    def __init__(self, matrix: KernelMatrix, k: int) -> None:
        batch, n = matrix.quality.shape
        self.matrix = matrix
        self.factor = matrix.quality.new_zeros(batch, k, n)  # C; the rows of picks to come are zero
        self.done = [0] * batch

    @property
    def _past(self) -> Tensor:
        """(B, t, N) rows of C so far; what they span is taken out of L."""
        return self.factor[:, : max(self.done)]

    def _residual(self, picks: Tensor, past: Tensor) -> Tensor:
        """(B, n, N) rows of L without what rows of C span."""
        return torch.baddbmm(self.matrix.rows(picks), _columns(past, picks).mT, past, alpha=-1)

    def among(self, candidates: Tensor) -> Tensor:
        past = _columns(self._past, candidates)
        return torch.baddbmm(self.matrix.square(candidates), past.mT, past, alpha=-1)

    def lower(self, gain: Array, pick: int, matrix: Array, past: Array) -> Array:
        past[-1] = (matrix[pick] - past[:-1, pick] @ past[:-1]) / np.sqrt(gain[pick])
        lowered: Array = gain - past[-1] ** 2
        return lowered

    def step(self, gain: Tensor, pick: Tensor, at: Tensor) -> Tensor:
        # Once nothing is left to gain, the root is NaN, and so are all gains, none of which is above its floor then.
        new = self._residual(pick, self.factor)[:, 0] / gain.gather(1, pick).sqrt()
        self.factor.index_copy_(1, at, new[:, None])
        return gain - new.square()

    def update(self, gain: Tensor, picks: Tensor, counts: list[int]) -> Tensor:
        rows = self._residual(picks, self._past)
        identity = torch.eye(picks.shape[1], dtype=rows.dtype, device=rows.device)
        counted = torch.arange(picks.shape[1]) < torch.tensor(counts)[:, None]
        counted = counted.to(rows.device)[:, :, None]
        square = torch.where(counted & counted.mT, _columns(rows, picks), identity)
        lower = torch.linalg.cholesky_ex(square).L
        new: Tensor = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False) @ rows.mul_(counted)
        for row, (start, count) in enumerate(zip(self.done, counts, strict=True)):
            self.factor[row, start : start + count] = new[row, :count]
        self.done = [start + count for start, count in zip(self.done, counts, strict=True)]
        return gain - new.square_().sum(1)


def _columns(rows: Tensor, index: Tensor) -> Tensor:
    """Columns (B, t, n) of rows (B, t, N) at (B, n) indices."""
    return rows.gather(2, index[:, None].expand(-1, rows.shape[1], -1))
