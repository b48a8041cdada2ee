import pytest

from tokenprune import Budget
from tokenprune.errors import BudgetError


@pytest.mark.parametrize(
    ("budget", "total", "kept"),
    [
        (Budget(keep_tokens=64), 576, 64),
        (Budget(keep_tokens=576), 576, 576),
        (Budget(keep_ratio=0.098), 576, 56),  # DivPrune's setting: 56.4
        (Budget(keep_ratio=0.1), 576, 58),  # to the nearest: 57.6
        (Budget(keep_ratio=1), 576, 576),
        (Budget(keep_ratio=1e-6), 576, 1),
        (Budget(keep_ratio=0.5), 5, 2),  # half to even
    ],
)
def test_resolve(budget, total, kept):
    assert budget.resolve(total) == kept


@pytest.mark.parametrize("value", [0, -3, 1.5, True, "64"])
def test_bad_keep_tokens(value):
    with pytest.raises(BudgetError, match="keep_tokens must be an integer of at least 1"):
        Budget(keep_tokens=value)


@pytest.mark.parametrize("value", [0, -0.1, 1.01, True, "half", float("nan")])
def test_bad_keep_ratio(value):
    with pytest.raises(BudgetError, match=r"keep_ratio must be a number in \(0, 1\]"):
        Budget(keep_ratio=value)


def test_exactly_one():
    with pytest.raises(BudgetError, match="neither"):
        Budget()
    with pytest.raises(BudgetError, match="both"):
        Budget(keep_tokens=1, keep_ratio=0.5)


def test_more_than_there_are():
    with pytest.raises(BudgetError, match="keep_tokens=600 exceeds the 576 visual tokens"):
        Budget(keep_tokens=600).resolve(576)
