"""Compositions: who prunes where, how many stay after each, and what is refused."""

import dataclasses
import json

import pytest
import torch

from tokenprune import Budget, VisualTokens, create_pruner
from tokenprune.core.errors import BudgetError, ConfigError, RegistryError
from tokenprune.core.plan import Operation
from tokenprune.core.registry import Entry
from tokenprune.core.signals import TowerKeys
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.stages import PRE_LLM, decoder
from tokenprune.pruners.base import PRUNERS, ScorePruner
from tokenprune.pruners.compose import Compose

SPEC = ModelSpec(TransformerSpec(32, 8, 16, 2, 2, 4, 3), vocabulary=10, visual_tokens=576)
SHALLOW = dataclasses.replace(SPEC, llm=dataclasses.replace(SPEC.llm, layers=4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Largest(ScorePruner):
    """Keeps the tokens of largest norm at layers of one's choice, and appends a part of what it drops."""

    layers: tuple[int, ...] = (4,)
    part: float = 0.0
    own: Budget | None = None
    adaptive: bool = False

    @property
    def requires(self):
        return frozenset({TowerKeys()})

    @property
    def budget(self):
        return self.own

    def stages(self, spec):
        return tuple(map(decoder, self.layers))

    def counts(self, spec, keep, total):
        number = len(self.layers)
        return tuple(round(total * (keep / total) ** (step / number)) for step in range(1, number + 1))

    def appended(self, dropped):
        return int(self.part * dropped)

    def score(self, tokens):
        return tokens.features.norm(dim=-1)


def planned(pruner, counts, total):
    """The plan if the stages select so many."""
    return pruner.plan(SHALLOW, pruner.alive(SHALLOW, counts, total), total)


def compose(*pruners):
    return create_pruner("compose", pruners=list(pruners))


def layers_of(plan):
    return [plan.tokens(layer, Operation.ATTENTION_SOURCE) for layer in range(len(plan.active))]


def test_stages_and_steps_are_those_of_the_members():
    late = Largest(layers=(5, 9))
    pruner = compose("cdpruner", {"name": "fastv", "layer": 3}, late)
    stages = (PRE_LLM, decoder(3), decoder(5), decoder(9))
    assert pruner.stages(SPEC) == stages
    steps = pruner.steps(SPEC)
    assert tuple(step.stage for step in steps) == stages
    assert [step.selector for step in steps] == [
        create_pruner("cdpruner"),
        create_pruner("fastv", layer=3),
        late,
        late,
    ]


def test_each_member_selects_at_its_own_step():
    tokens = VisualTokens(torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0)))
    random, largest = create_pruner("random", seed=3), Largest()
    pruner = compose(random, largest)
    for step, member in zip(pruner.steps(SPEC), (random, largest), strict=True):
        assert torch.equal(step.selector.select(tokens, 7).keep, member.select(tokens, 7).keep)
    assert torch.equal(pruner.select(tokens, 7).keep, random.select(tokens, 7).keep)


def test_properties_are_those_of_the_members():
    pruner = compose("cdpruner", Largest())
    assert pruner.requires == create_pruner("cdpruner").requires | {TowerKeys()}
    assert not pruner.adaptive
    assert compose("uniform", Largest(adaptive=True)).adaptive


@pytest.mark.parametrize(
    ("members", "keep", "counts"),
    [
        (["cdpruner", "fastv"], 64, (192, 64)),
        (["cdpruner", "fastv"], 144, (288, 144)),
        (["cdpruner", "fastv"], 1, (24, 1)),
        (["cdpruner", "fastv"], 576, (576, 576)),
        (["cdpruner", "fastv"], 0, (0, 0)),
        (["fastv"], 64, (64,)),
        (["uniform", "fastv", Largest()], 72, (288, 144, 72)),
        (["uniform", Largest(layers=(3, 6))], 36, (144, 72, 36)),
    ],
)
def test_one_budget_is_equal_shares(members, keep, counts):
    assert compose(*members).counts(SPEC, keep, 576) == counts
    if keep:
        assert compose(*members).schedule(SPEC, Budget(keep_tokens=keep), 576) == counts
        assert compose(*members).schedule(SPEC, Budget(keep_ratio=keep / 576), 576) == counts
    assert compose(*members).budget is None


MEMBERS = {
    "two": ["uniform", "fastv"],
    "three": ["uniform", {"name": "fastv", "layer": 1}, Largest(layers=(2, 3))],
    "methods": ["cdpruner", {"name": "sparsevlm", "layers": [0, 1, 2]}],
    "appending": [Largest(layers=(1, 2), part=0.1), Largest(layers=(3,), part=0.1)],
}


@pytest.mark.parametrize("members", MEMBERS.values(), ids=list(MEMBERS))
@pytest.mark.parametrize("total", [1, 2, 7, 144])
def test_counts_grow_with_the_budget_and_shrink_along_the_layers(members, total):
    pruner = compose(*members)
    every = [pruner.counts(SHALLOW, keep, total) for keep in range(total + 1)]
    means = [planned(pruner, counts, total).mean_tokens for counts in every]
    assert set(every[0]) == {0}
    assert set(every[-1]) == {total}
    assert [counts[-1] for counts in every] == list(range(total + 1))
    assert means == sorted(means)
    for counts in every[1:]:
        assert list(counts) == sorted(counts, reverse=True)
        assert counts[-1] >= 1


@pytest.mark.parametrize("members", MEMBERS.values(), ids=list(MEMBERS))
@pytest.mark.parametrize("average", [100, 120.5, 143, 144])
def test_an_average_is_reached_by_as_few_tokens_as_possible(members, average):
    pruner = compose(*members)
    counts = pruner.schedule(SHALLOW, Budget(average_tokens=average), 144)
    assert planned(pruner, counts, 144).mean_tokens >= average
    fewer = pruner.counts(SHALLOW, counts[-1] - 1, 144)
    assert planned(pruner, fewer, 144).mean_tokens < average


def test_an_impossible_average_is_refused():
    pruner = compose({"name": "fastv", "layer": 2}, Largest(layers=(3,)))
    with pytest.raises(BudgetError, match=r"average_tokens=70 cannot be met.* spend 72 of 144 visual tokens"):
        pruner.schedule(SHALLOW, Budget(average_tokens=70), 144)


def test_the_plan_is_what_is_alive_in_each_layer():
    pruner = compose("uniform", Largest(layers=(1, 3), part=0.1))
    plan = planned(pruner, (80, 40, 20), 144)
    # 80; 40 and a tenth of the 40 that are dropped; 20 and a tenth of 24
    assert layers_of(plan) == [80, 44, 44, 22]


@pytest.mark.parametrize(
    ("first", "second", "counts", "together"),
    [
        ({"keep_tokens": 64}, {"keep_ratio": 0.5}, (64, 32), Budget(keep_tokens=32)),
        ({"keep_ratio": 0.5}, {"keep_ratio": 0.25}, (288, 72), Budget(keep_ratio=0.125)),
        ({"keep_ratio": 0.5}, {"keep_tokens": 20}, (288, 20), Budget(keep_tokens=20)),
    ],
)
def test_members_with_budgets_of_their_own(first, second, counts, together):
    pruner = compose({"name": "cdpruner", **first}, {"name": "fastv", **second})
    assert pruner.budget == together
    assert pruner.schedule(SPEC, pruner.budget, 576) == counts
    with pytest.raises(BudgetError, match="keep_tokens=9 does not apply: each pruner of the composition has a budget"):
        pruner.schedule(SPEC, Budget(keep_tokens=9), 576)


def test_a_budget_of_a_member_is_of_what_arrives_at_it():
    """144 tokens: 44 stay and 10 of 100 dropped ones are appended, and half of these 54 stay."""
    first = Largest(layers=(1,), part=0.1, own=Budget(keep_tokens=44))
    pruner = compose(first, {"name": "fastv", "layer": 2, "keep_ratio": 0.5})
    counts = pruner.schedule(SHALLOW, pruner.budget, 144)
    assert counts == (44, 27)
    assert layers_of(planned(pruner, counts, 144)) == [144, 54, 27, 27]


def test_options_may_fix_a_member_s_budget(monkeypatch):
    """The member's own is said again only if it differs."""
    PRUNERS.names()
    monkeypatch.setitem(PRUNERS._entries, "largest", Entry("largest", Largest, "", None))
    half, quarter = Budget(keep_ratio=0.5), Budget(keep_ratio=0.25)
    for given, budget in (({}, half), ({"keep_ratio": 0.5}, half), ({"keep_ratio": 0.25}, quarter)):
        pruner = compose({"name": "largest", "own": half, **given})
        assert pruner.budget == budget
        assert ("keep_ratio" in pruner.pruners[0]) == (budget != half)
        assert compose(*pruner.pruners) == pruner


def test_a_member_s_own_budget_that_cannot_be_met_names_it():
    pruner = compose({"name": "cdpruner", "keep_tokens": 64}, {"name": "fastv", "keep_tokens": 65})
    with pytest.raises(BudgetError, match="FastV: keep_tokens=65 exceeds the 64 visual tokens"):
        pruner.schedule(SPEC, pruner.budget, 576)


def test_plain_in_plain_out():
    given = ["random", {"name": "fastv", "layer": 3}]
    pruner = create_pruner("compose", pruners=given)
    assert given == ["random", {"name": "fastv", "layer": 3}]
    random, fastv = create_pruner("random"), create_pruner("fastv", layer=3)
    assert pruner.pruners == (
        {"name": "random", **dataclasses.asdict(random)},
        {"name": "fastv", **dataclasses.asdict(fastv)},
    )
    assert [member for member, _ in pruner.members] == [random, fastv]
    again = json.loads(json.dumps(pruner.pruners))
    assert create_pruner("compose", pruners=again) == pruner
    assert dataclasses.asdict(pruner)["pruners"] == pruner.pruners


def test_budgets_survive_the_round_trip():
    pruner = compose({"name": "random", "keep_ratio": 1}, {"name": "fastv", "keep_tokens": 5, "keep_ratio": None})
    assert [budget for _, budget in pruner.members] == [Budget(keep_ratio=1.0), Budget(keep_tokens=5)]
    assert compose(*pruner.pruners) == pruner
    assert (pruner.pruners[0]["keep_ratio"], pruner.pruners[1]["keep_tokens"]) == (1.0, 5)
    assert "keep_ratio" not in pruner.pruners[1]


def test_pruners_as_members():
    largest = Largest(own=Budget(keep_ratio=0.5))
    pruner = Compose(pruners=(largest,))
    assert pruner.pruners == (largest,)
    assert pruner.members == ((largest, Budget(keep_ratio=0.5)),)
    assert Compose(pruners=[largest]) == pruner


def test_default_is_cdpruner_and_fastv():
    assert create_pruner("compose") == compose("cdpruner", "fastv")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["cdpruner", "random"], "composition of CDPruner and Random prunes at pre_llm and then at pre_llm"),
        (["fastv", "cdpruner"], "composition of FastV and CDPruner prunes at layer=2 and then at pre_llm"),
        (["fastv", Largest(layers=(2,))], "composition of FastV and Largest prunes at layer=2 and then at layer=2"),
        ([Largest(layers=(1, 3)), "fastv"], "composition of Largest and FastV prunes at layer=3 and then at layer=2"),
        (["uniform", {"name": "fastv", "layer": 4}], "composition of Uniform and FastV prunes at layer=4, but the LLM"),
    ],
)
def test_order_conflicts_name_the_members(members, message):
    with pytest.raises(ConfigError) as error:
        compose(*members).steps(SHALLOW)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("members", "kind", "message"),
    [
        ([], ConfigError, "'pruners' is empty; give at least one pruner"),
        (["cdpruner", "fastw"], RegistryError, "unknown pruner 'fastw'; did you mean 'fastv'?"),
        (["cdpruner", {"name": "fastv", "layr": 2}], ConfigError, "pruner 'fastv' has no option 'layr'; did you mean"),
        (["cdpruner", {"name": "fastv", "layer": "x"}], ConfigError, "pruner 'fastv': layer must be an integer, got"),
        ([{"name": "random", "seed": -1}], ConfigError, "pruner 'random': option 'seed' is -1"),
        ([{"name": "random", "keep_ratio": 2}], BudgetError, "pruner 'random': keep_ratio must be a number in (0, 1]"),
        ([{"name": "random", "keep_tokens": 0}], BudgetError, "pruner 'random': keep_tokens must be an integer of at"),
        ([{"name": "random", "keep_tokens": "x"}], ConfigError, "pruner 'random': keep_tokens must be an integer"),
        (
            [{"name": "random", "keep_tokens": 3, "keep_ratio": 0.5}],
            BudgetError,
            "pruner 'random': give exactly one of keep_tokens, keep_ratio, average_tokens and flops, got keep_tokens",
        ),
        (
            ["cdpruner", {"name": "fastv", "keep_ratio": 0.5}],
            ConfigError,
            "either all pruners of a composition have a budget or none has; CDPruner has none",
        ),
        (["cdpruner", {"name": "compose"}], ConfigError, "a composition cannot be a part of another"),
        ([{"layer": 3}], ConfigError, "a pruner inside another needs a name, got None"),
        ([3], ConfigError, "pruners must be a list, each item text or a mapping or Pruner, got [3]"),
    ],
)
def test_mistakes(members, kind, message):
    with pytest.raises(kind) as error:
        compose(*members)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_positions_are_no_option():
    with pytest.raises(ConfigError, match="has no option 'positions'"):
        create_pruner("compose", positions="original")
