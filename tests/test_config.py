"""Configuration: what is read, and that each mistake is one sentence."""

import dataclasses

import pytest
import yaml

from tokenprune.budget import Budget
from tokenprune.config import ModelConfig, Part, RunConfig, load_config, parse_config
from tokenprune.errors import TokenPruneError

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


def test_equal_budgets_count_once(load):
    assert load("budget.keep_tokens=[8, 8]").budget == (Budget(keep_tokens=8),)


def test_to_mapping_can_be_read_again(load):
    config = load("pruner={name: cdpruner, theta: 0.5}", "tracking=wandb", "model={name: llava, path: somewhere}")
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
    "budget.keep_tokens=null": "either keep_tokens or keep_ratio, got neither",
    "budget.keep_ratio=0.5": "either keep_tokens or keep_ratio, got both",
    "budget=3": "budget must be a mapping",
    "batch_size=0": "batch_size must be at least 1, got 0",
    "batch_size=x": "config: batch_size must be an integer, got 'x'",
    "model.dtype=float8_e4m3fn": "model: dtype is 'float8_e4m3fn'; did you mean 'float64'? Allowed: bfloat16, float16",
    "model.name=llava": "model 'llava' needs a path",
    "model.path=x": "model 'embedded' takes no path",
    "model.dtyp=x": "model has no option 'dtyp'; did you mean 'dtype'?",
    "task.name=[1]": "task needs a name, got [1]",
    "baselines=[{seed: 1}]": "baselines[0] needs a name",
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


def test_merging_a_mapping_into_a_list_is_a_mistake(load):
    with pytest.raises(TokenPruneError) as error:
        load("pruner=[1]", text="pruner: {name: cdpruner}\nbudget: {keep_tokens: 1}\n")
    assert "\n" not in str(error.value)


def test_frozen(load):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load().seed = 3
