"""Configuration: what is read, and that each mistake is one sentence."""

import dataclasses

import pytest
import yaml

from tokenprune.core.budget import Budget
from tokenprune.core.errors import BudgetError, TokenPruneError
from tokenprune.sweeps.config import Part, RunConfig, load_config, parse_config
from tokenprune.sweeps.model_config import ModelConfig

MINIMAL = "pruner: cdpruner\nbudget: {keep_tokens: [48, 24]}\n"


@pytest.fixture
def load(tmp_path):
    def load(*overrides, text=MINIMAL):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return load_config(path, overrides)

    return load


def test_defaults(load):
    config = load()
    assert config == RunConfig(
        model=ModelConfig(name="embedded"),
        task=Part("scenes"),
        pruner=Part("cdpruner"),
        baselines=(Part("none"), Part("random")),
        budget=(Budget(keep_tokens=48), Budget(keep_tokens=24)),
    )


def test_none_and_random_are_always_among_the_baselines(load):
    config = load("baselines=[{name: random, seed: 3}, divprune]")
    assert [part.name for part in config.baselines] == ["none", "random", "divprune"]
    assert config.baselines[1].options == {"seed": 3}
    assert [part.name for part in load("pruner=random").baselines] == ["none"]


def test_overrides(load):
    config = load(
        "pruner={name: cdpruner}", "pruner.theta=0.5", "budget.keep_tokens=7", "model.dtype=bfloat16", "seed=2"
    )
    assert config.pruner == Part("cdpruner", {"theta": 0.5})
    assert config.budget == (Budget(keep_tokens=7),)
    assert (config.model.dtype, config.seed) == ("bfloat16", 2)
    ratio = load("budget.keep_tokens=null", "budget.keep_ratio=[0.5, 1]")
    assert ratio.budget == (Budget(keep_ratio=0.5), Budget(keep_ratio=1.0))


def test_average_budgets(load):
    config = load("budget.keep_tokens=null", "budget.average_tokens=[64, 32.5]")
    assert config.budget == (Budget(average_tokens=64.0), Budget(average_tokens=32.5))


def test_budgets_of_flops(load):
    config = load("budget.flops=[2e8, 100000000]", "budget.text_tokens=40")
    assert config.budget == (Budget(flops=2e8, text_tokens=40), Budget(flops=1e8, text_tokens=40))
    assert config.to_mapping()["budget"] == {"flops": [2e8, 1e8], "text_tokens": 40}
    assert load("budget.flops=2e8").budget == (Budget(flops=2e8),)


def test_a_list_of_pruners_is_a_composition(load):
    two = Part("compose", {"pruners": [{"name": "cdpruner"}, {"name": "fastv", "layer": 3}]})
    for text in ("pruner: [cdpruner, {name: fastv, layer: 3}]\n", f"pruner: {two.to_mapping()}\n"):
        assert load(text=text + "budget: {keep_tokens: 5}\n").pruner == two
    config = load("baselines=[divprune, [cdpruner, {name: fastv, layer: 3}]]")
    assert config.baselines == (Part("none"), Part("random"), Part("divprune"), two)


def test_overrides_replace_or_enter_lists(load):
    """A list for a mapping, a mapping for a list, and an item of a list by its number."""
    two = "pruner=[cdpruner, {name: fastv, layer: 3}]"
    config = load("pruner={name: cdpruner, theta: 0.3}", two)
    assert config.pruner.options["pruners"] == [{"name": "cdpruner"}, {"name": "fastv", "layer": 3}]
    assert load(two, "pruner.1.layer=4").pruner.options["pruners"][1] == {"name": "fastv", "layer": 4}
    assert load(two, "pruner[1].layer=4").pruner.options["pruners"][1] == {"name": "fastv", "layer": 4}
    merged = load("pruner={name: cdpruner, theta: 0.3}", "pruner={kernel: rbf}")
    assert merged.pruner.options == {"theta": 0.3, "kernel": "rbf"}
    assert load(two, "pruner={name: random}").pruner == Part("random")
    assert load(two, "pruner=random").pruner == Part("random")


def test_overrides_may_refer_to_other_keys(load):
    config = load("output=runs/${seed}", "seed=3", "batch_size=${seed}")
    assert (config.output, config.batch_size) == ("runs/3", 3)


def test_equal_budgets_count_once(load):
    assert load("budget.keep_tokens=[8, 8]").budget == (Budget(keep_tokens=8),)


@pytest.mark.parametrize(
    "overrides",
    [
        ["pruner={name: cdpruner, theta: 0.5}", "tracking=wandb", "model={name: llava, path: somewhere}"],
        ["pruner=[cdpruner, {name: fastv, keep_ratio: 0.5}]", "baselines=[[random, fastv]]"],
        ["budget={keep_tokens: null, keep_ratio: [0.5, 0.25]}"],
        ["budget={keep_tokens: null, average_tokens: [64, 32.5]}"],
        ["budget={flops: [2e8, 1e8], text_tokens: 40}"],
    ],
)
def test_to_mapping_can_be_read_again(load, overrides):
    config = load(*overrides)
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.to_mapping()))) == config


MISTAKES = {
    "bugdet.keep_tokens=3": "config has no option 'bugdet'; did you mean 'budget'?",
    "budget.keep_token=3": "budget has no option 'keep_token'; did you mean 'keep_tokens'?",
    "budget.keep_tokens=0": "keep_tokens must be an integer of at least 1, got 0",
    "budget.keep_tokens=-4": "keep_tokens must be an integer of at least 1, got -4",
    "budget.keep_tokens=many": "budget: keep_tokens must be an integer or null, got 'many'",
    "budget.keep_tokens=1.5": "budget: keep_tokens must be an integer or null, got 1.5",
    "budget.keep_tokens=true": "budget: keep_tokens must be an integer or null, got True",
    "budget.keep_tokens=[]": "budget is an empty list; give at least one",
    "budget.keep_tokens=null": "exactly one of keep_tokens, keep_ratio, average_tokens and flops, got none",
    "budget={keep_tokens: 3, keep_ratio: 0.5}": "average_tokens and flops, got keep_tokens and",
    "budget={keep_tokens: 3, average_tokens: 12}": "budget: give exactly one of",
    "budget={keep_tokens: null, average_tokens: 0.5}": "budget: average_tokens must be a number of at least 1, got 0.5",
    "budget={keep_tokens: null, average_tokens: x}": "budget: average_tokens must be a number or null, got 'x'",
    "budget=3": "budget must be a mapping",
    "batch_size=0": "batch_size must be at least 1, got 0",
    "batch_size=x": "config: batch_size must be an integer, got 'x'",
    "model.dtype=float8_e4m3fn": "model: dtype is 'float8_e4m3fn'; did you mean 'float64'? Allowed: bfloat16, float16",
    "model.name=llava": "model: 'llava' needs a path",
    "model.path=x": "model: 'embedded' takes no path",
    "model.dtyp=x": "model has no option 'dtyp'; did you mean 'dtype'?",
    "task.name=[1]": "task needs a name, got [1]",
    "baselines=[{seed: 1}]": "baselines[0] needs a name",
    "baselines=[random,[cdpruner,{layer: 3}]]": "baselines[1][1] needs a name, got None",
    "pruner=[cdpruner,3]": "pruner[1] must be a mapping of keys to values, got 3",
    "pruner": "override 'pruner' is not of the form key=value",
    "=3": "override '=3' is not of the form key=value",
    "pruner=[1": "flow sequence",
    "seed=${nothing}": "nothing",
    "task=???": "task",
}


@pytest.mark.parametrize(("override", "message"), MISTAKES.items(), ids=list(MISTAKES))
def test_mistakes(load, override, message):
    with pytest.raises(TokenPruneError) as error:
        load(override)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_ratio_out_of_range(load):
    for ratio in ("0", "1.5", "-0.1", ".nan"):
        with pytest.raises(TokenPruneError, match=r"keep_ratio must be a number in \(0, 1\]"):
            load("budget.keep_tokens=null", f"budget.keep_ratio={ratio}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "expected"),
        ("- 1\n- 2\n", "must hold a mapping"),
        ("", "config needs the option 'pruner'"),
        ("pruner: cdpruner\n", "config needs the option 'budget'"),
        ("pruner: 3\nbudget: {keep_tokens: 1}\n", "pruner must be a mapping"),
        ("pruner: cdpruner\nbudget: {keep_tokens: 1}\nbudget: {keep_tokens: 2}\n", "budget"),
    ],
)
def test_bad_files(load, text, message):
    with pytest.raises(TokenPruneError) as error:
        load(text=text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(TokenPruneError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(TokenPruneError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TokenPruneError, match=r"b\.yaml"):
        load_config(tmp_path / "b.yaml")


@pytest.mark.parametrize("override", ["pruner.7.layer=3", "pruner.layer=3", "pruner.name=random"])
def test_a_list_has_numbers_and_no_keys(load, override):
    with pytest.raises(TokenPruneError) as error:
        load("pruner=[cdpruner, fastv]", override)
    assert "c.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_frozen(load):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load().seed = 3


def test_a_budget_on_the_command_line_replaces_that_of_the_file(load):
    assert load("budget.average_tokens=12").budget == (Budget(average_tokens=12),)
    assert load("budget.keep_ratio=[0.5,0.25]").budget == (Budget(keep_ratio=0.5), Budget(keep_ratio=0.25))
    with pytest.raises(BudgetError, match="got keep_tokens and keep_ratio"):
        load("budget.keep_ratio=0.5", "budget.keep_tokens=4")
