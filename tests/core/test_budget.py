import pytest

from tokenprune import Budget
from tokenprune.core.errors import BudgetError

ALL = "keep_tokens, keep_ratio, average_tokens and flops"


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
        (Budget(average_tokens=64), 576, 64),  # of pruning before the LLM
        (Budget(average_tokens=63.2), 576, 64),
        (Budget(average_tokens=576), 576, 576),
        (Budget(average_tokens=1), 576, 1),
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


@pytest.mark.parametrize("value", [0, 0.5, -1, True, "64", float("nan")])
def test_bad_average_tokens(value):
    with pytest.raises(BudgetError, match="average_tokens must be a number of at least 1"):
        Budget(average_tokens=value)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ({}, "none"),
        ({"keep_tokens": 1, "keep_ratio": 0.5}, "keep_tokens and keep_ratio"),
        ({"keep_ratio": 0.5, "average_tokens": 2}, "keep_ratio and average_tokens"),
        ({"keep_ratio": 0.5, "flops": 2, "text_tokens": 3}, "keep_ratio and flops"),
        ({"text_tokens": 3}, "none"),
    ],
)
def test_exactly_one(given, got):
    with pytest.raises(BudgetError, match=f"exactly one of {ALL}, got {got}$"):
        Budget(**given)


@pytest.mark.parametrize("value", [0, -1e9, True, "1e12", float("nan"), float("inf")])
def test_bad_flops(value):
    with pytest.raises(BudgetError, match="flops must be a positive number"):
        Budget(flops=value)


@pytest.mark.parametrize("value", [-1, 1.5, True, "64"])
def test_bad_text_tokens(value):
    with pytest.raises(BudgetError, match="text_tokens must be an integer of at least 0"):
        Budget(flops=1e9, text_tokens=value)


def test_text_goes_with_flops():
    with pytest.raises(BudgetError, match="text_tokens goes with flops, but the budget is of keep_ratio"):
        Budget(keep_ratio=0.5, text_tokens=3)


@pytest.mark.parametrize("budget", [Budget(keep_tokens=600), Budget(average_tokens=600)])
def test_more_than_there_are(budget):
    with pytest.raises(BudgetError, match="_tokens=600 exceeds the 576 visual tokens"):
        budget.resolve(576)


def late(layer, layers, total):
    """Mean over the layers if ``keep`` of ``total`` tokens go on from ``layer``."""
    return lambda keep: (layer * total + (layers - layer) * keep) / layers


@pytest.mark.parametrize("layer", [0, 1, 2, 7])
@pytest.mark.parametrize("total", [1, 10, 25])
def test_average_is_reached_by_as_few_as_possible(layer, total):
    mean = late(layer, 8, total)
    for keep in range(1, total + 1):
        assert Budget(average_tokens=max(1.0, mean(keep))).resolve(total, mean) == keep
        assert Budget(average_tokens=max(1.0, (mean(keep - 1) + mean(keep)) / 2)).resolve(total, mean) == keep


@pytest.mark.parametrize("average", [36, 20])
def test_average_that_is_spent_before_anything_leaves(average):
    with pytest.raises(BudgetError, match=f"average_tokens={average} cannot be met.* spend 36 of 576 visual tokens"):
        Budget(average_tokens=average).resolve(576, late(2, 32, 576))


@pytest.mark.parametrize("total", [1, 10, 25])
def test_flops_are_spent_as_far_as_they_go(total):
    def cost(keep):
        return 1000 + 7 * keep**2

    for keep in range(1, total + 1):
        assert Budget(flops=cost(keep)).resolve(total, cost) == keep
        if keep < total:
            assert Budget(flops=cost(keep + 1) - 0.5).resolve(total, cost) == keep


def test_flops_that_one_token_exceeds():
    with pytest.raises(
        BudgetError, match=r"flops=1006, text_tokens=3 cannot be met: with one visual .* cost 1007; raise"
    ):
        Budget(flops=1006, text_tokens=3).resolve(10, lambda keep: 1000 + 7 * keep)


def test_flops_that_all_tokens_do_not_spend():
    with pytest.raises(BudgetError, match="flops=2000 exceeds the 1070 that all 10 visual tokens cost"):
        Budget(flops=2000).resolve(10, lambda keep: 1000 + 7 * keep)


@pytest.mark.parametrize(
    ("budget", "mapping", "text"),
    [
        (Budget(keep_tokens=1234567), {"keep_tokens": 1234567}, "keep_tokens=1234567"),
        (Budget(keep_ratio=0.12345678), {"keep_ratio": 0.12345678}, "keep_ratio=0.12345678"),
        (Budget(average_tokens=64.0), {"average_tokens": 64.0}, "average_tokens=64"),
        (Budget(flops=2e9), {"flops": 2e9}, "flops=2000000000"),
        (Budget(flops=2e9, text_tokens=40), {"flops": 2e9, "text_tokens": 40}, "flops=2000000000, text_tokens=40"),
    ],
)
def test_as_written(budget, mapping, text):
    assert budget.to_mapping() == mapping
    assert Budget(**budget.to_mapping()) == budget
    assert str(budget) == text
    assert mapping[budget.kind] == budget.value


@pytest.mark.parametrize(
    ("first", "following", "together"),
    [
        (Budget(keep_ratio=0.5), Budget(keep_ratio=0.25), Budget(keep_ratio=0.125)),
        (Budget(keep_ratio=0.5), Budget(keep_tokens=64), Budget(keep_tokens=64)),
        (Budget(keep_tokens=64), Budget(keep_ratio=0.3), Budget(keep_tokens=19)),
        (Budget(keep_tokens=64), Budget(keep_tokens=32), Budget(keep_tokens=32)),
    ],
)
def test_one_after_the_other(first, following, together):
    assert first.then(following) == together
    assert first.then(following).resolve(576) == following.resolve(first.resolve(576))


@pytest.mark.parametrize(
    "pair", [("average_tokens", "keep_ratio"), ("keep_ratio", "average_tokens"), ("flops", "keep_ratio")]
)
def test_an_average_does_not_tell_what_is_left(pair):
    first, following = (Budget(**{key: 1}) for key in pair)
    with pytest.raises(BudgetError, match="are not one budget"):
        first.then(following)
