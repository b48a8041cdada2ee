import pytest
import torch
from golden_data import load, orders

from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError

SCOPE = create_pruner("scope")


def tokens_of(case):
    states = case["hidden_states"][:, 1:]
    signals = {"cls_attention": case["cls_attention"][:, :, 1:], "vision_hidden": states}
    return VisualTokens(states, signals)


@pytest.mark.parametrize("name", ["scope_t64", "scope_b2_budget_split"])
def test_picks_are_those_of_the_official_code(name):
    """Of two images the code keeps 64 each where it is asked for 128."""
    case = load(name)
    chosen = SCOPE.select(tokens_of(case), 64)
    assert torch.equal(chosen.order, case["order"].long())
    assert torch.equal(chosen.keep, case["kept"].long())


def test_larger_budgets_go_on_where_smaller_ones_end():
    case = load("scope_t64")
    assert [size for size, _ in orders(case)] == [128, 192]
    for size, order in orders(case):
        assert torch.equal(SCOPE.select(tokens_of(case), size).order, order)
        assert torch.equal(order[:, :64], case["order"].long())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_literal_transcription(alpha, combine):
    generator = torch.Generator().manual_seed(0)
    x, attention = torch.randn(30, 5, generator=generator), torch.rand(3, 30, generator=generator)
    tokens = VisualTokens(x[None], {"cls_attention": attention[None], "vision_hidden": x[None]})
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    cosine, best, picks = unit @ unit.T, torch.zeros(30).double(), []
    for _ in range(10):
        gains = {}
        for j in set(range(30)) - set(picks):
            gain = sum(max(0.0, float(cosine[i, j] - best[i])) for i in range(30))
            weight = float(attention[:, j].double().sum()) ** alpha
            gains[j] = gain * weight if combine == "multiply" else gain + weight
        picks.append(max(gains, key=gains.get))
        best = best.maximum(cosine[:, picks[-1]])
    assert create_pruner("scope", alpha=alpha, combine=combine).select(tokens, 10).order[0].tolist() == picks


def test_by_hand():
    # Two directions, three tokens in the first: one of them covers three. Attention on the last but one outweighs that.
    x = torch.tensor([[[1.0, 0], [2, 0], [3, 0], [0, 1], [-1, 0]]])
    equal = VisualTokens(x, {"cls_attention": torch.full((1, 1, 5), 0.2), "vision_hidden": x})
    assert SCOPE.select(equal, 3).order.tolist() == [[0, 3, 4]]
    attention = torch.tensor([[[0.1, 0.1, 0.1, 0.6, 0.1]]])
    weighed = VisualTokens(x, {"cls_attention": attention, "vision_hidden": x})
    assert SCOPE.select(weighed, 2).order.tolist() == [[3, 0]]
    assert create_pruner("scope", alpha=0.0).select(weighed, 2).order.tolist() == [[0, 3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"alpha": -1.0}, "alpha.*at least 0"), ({"combine": "sum"}, "Allowed: add, multiply")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        create_pruner("scope", **options)
