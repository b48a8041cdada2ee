"""Counts of segments add up, whatever their weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.core.errors import BudgetError
from tokenprune.core.quota import Quota

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@given(data=st.data(), sizes=SIZES)
def test_shares_add_up_and_no_segment_gives_more_than_it_has(data, sizes):
    total = data.draw(st.integers(1, sum(sizes)))
    weights = data.draw(st.lists(st.floats(0, 1e3), min_size=len(sizes), max_size=len(sizes)))
    quota = Quota(total, tuple(sizes))
    for counts in (quota.shares(weights), quota.equal(), quota.proportional()):
        assert sum(counts) == total
        assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))


def test_by_hand():
    assert Quota(10, (20, 20)).shares([3, 1]) == [8, 2]  # 7.5 and 2.5: the first of equal remainders
    assert Quota(10, (4, 20, 20)).shares([8, 1, 1]) == [4, 3, 3]  # what the first lacks goes to the others
    assert Quota(7, (20, 20, 20)).shares([0, 0, 0]) == [3, 2, 2]
    assert Quota(6, (2, 10)).shares(torch.tensor([1.0, 0.0])) == [2, 4]  # nothing else is left
    assert Quota(7, (9, 9, 9)).equal() == [3, 2, 2]
    assert Quota(5, (20, 10)).proportional() == [3, 2]


@pytest.mark.parametrize("weights", [[1], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_bad_weights(weights):
    with pytest.raises(BudgetError, match="weights must be 2 numbers"):
        Quota(3, (5, 5)).shares(weights)


@pytest.mark.parametrize("total", [0, 11])
def test_bad_totals(total):
    with pytest.raises(BudgetError, match="of 10 visual tokens"):
        Quota(total, (5, 5))
