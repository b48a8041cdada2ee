"""The grid of a base, and choices from it."""

import numpy as np
import pytest
from study.grid import Grid
from study_rows import ATTENTION, HEADER, MLP, TOKENS, rows, sizes

from tokenprune.core.errors import DataError


def test_a_base_has_its_own_policies_and_those_that_drop_nothing():
    mixed = [*rows(), *rows(base="far", tokens=(2,))]
    far = Grid.of(HEADER, mixed, "far")
    assert sorted(map(tuple, far.sizes.tolist())) == sorted(sizes((2, 8)))
    assert {(row.tokens, row.base) for row in far.rows} == {(2, "far"), (8, "near")}
    assert set(Grid.of(HEADER, mixed, "near").sizes[:, 2].tolist()) == set(TOKENS)
    assert set(far.only({2}).sizes[:, 2].tolist()) == {2}


def test_what_was_not_measured_is_refused():
    with pytest.raises(DataError, match="no depth-wise policies over 'other'"):
        Grid.of(HEADER, rows(), "other")
    with pytest.raises(DataError, match=r"no policy \(3, 2, 5\) over 'near'"):
        Grid.of(HEADER, rows(), "near").at(3, 2, 5)


def test_means_and_choice():
    grid = Grid.of(HEADER, rows(), "near")
    at = grid.choose(grid.divergence, 55)
    cheap = [row for row in grid.rows if row.flops <= 55]
    assert grid.rows[at].divergence == min(row.divergence for row in cheap)
    assert grid.at(1, 0, 2).divergence == pytest.approx(ATTENTION[1] + MLP[0] - MLP[0] + TOKENS[2])
    assert np.array_equal(grid.accuracy, [row.right.mean() for row in grid.rows])
    edge = grid.edge(55)
    assert edge.any()
    assert not edge[grid.rows.index(grid.at(1, 0, 2))]
