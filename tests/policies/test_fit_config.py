"""The configuration of a fit: what it says, and that each mistake in it is one sentence."""

import re
from pathlib import Path

import pytest
import yaml

from tokenprune.core.budget import Budget
from tokenprune.core.errors import TokenPruneError
from tokenprune.core.plan import OperationPlan
from tokenprune.core.stages import PRE_LLM
from tokenprune.costs.model_card import load_card
from tokenprune.policies.fit_config import FitConfig, load_fit_config
from tokenprune.sweeps.config import Part, load_config
from tokenprune.sweeps.model_config import ModelConfig

SHIPPED = Path(__file__).parents[2] / "configs/fit_policy.yaml"


def load(*overrides):
    return load_fit_config(SHIPPED, overrides)


def test_the_file_that_ships():
    config = load()
    assert config.model == ModelConfig()
    assert config.pruner == Part("cdpruner")
    assert config.task.options["split"] == "validation"  # not what results are reported on
    assert config.samples == config.task.options["num_samples"]
    assert (config.kind, config.values) == ("average_tokens", (72, 48, 36))


def test_the_recipe_of_the_docs(tmp_path):
    text = (SHIPPED.parent.parent / "docs/operation_pruning.md").read_text()
    fit, run = re.findall(r"```yaml\n# (?:fit|run)\.yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "fit.yaml").write_text(fit)
    (tmp_path / "run.yaml").write_text(run)
    fitted, ran = load_fit_config(tmp_path / "fit.yaml"), load_config(tmp_path / "run.yaml")
    assert (fitted.kind, fitted.samples, fitted.model) == ("flops", 100, ran.model)
    assert f"flops_{fitted.values[1]:.15g}.yaml" in ran.pruner.options["policy"]
    spec, text_tokens = load_card("llava-1.5-7b").spec, ran.budget[0].text_tokens
    uniform = [
        OperationPlan.drop_at(spec, [PRE_LLM], [n], 576).prefill_flops(spec.llm, text_tokens) for n in (192, 128, 64)
    ]
    assert fitted.values == pytest.approx(uniform, rel=0.005)
    assert ran.budget == (Budget(flops=fitted.values[1], text_tokens=text_tokens),)


def test_overrides():
    config = load("budget.flops=2e8", "positions=teacher_forced", "pruner={name: random, seed: 3}", "samples=25")
    assert (config.kind, config.values) == ("flops", (2e8,))  # the file's budget is of another kind and gone
    assert config.positions == "teacher_forced"
    assert config.pruner == Part("random", {"seed": 3})
    assert config.samples == 25
    assert load("budget.milliseconds=[4,2.5]").values == (4, 2.5)


def test_what_it_says_can_be_read_again(tmp_path):
    config = load("budget.flops=2e8", "model={name: llava, path: x}", "pruner={name: random, seed: 3}", "query=true")
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config.to_mapping()))
    assert load_fit_config(tmp_path / "fit.yaml") == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("sample=9", "config has no option 'sample'; did you mean 'samples'?"),
        ("samples=0", "config: samples must be at least 1, got 0"),
        ("points=1", "config: points must be at least 2, got 1"),
        ("top=0", "config: top must be at least 1, got 0"),
        ("batch_size=0", "config: batch_size must be at least 1, got 0"),
        ("max_new_tokens=0", "config: max_new_tokens must be at least 1, got 0"),
        ("samples=all", "config: samples must be an integer, got 'all'"),
        ("positions=last", "config: positions is 'last'; Allowed: first_token, teacher_forced"),
        ("direction=back", "config: direction is 'back'; Allowed: forward, reverse"),
        ("attention=none", "config: attention is 'none'; Allowed: remove, update_only"),
        ("query=1", "config: query must be true or false, got 1"),
        (("query=true", "attention=update_only"), "config: query has no meaning with attention='update_only'"),
        ("budget.flop=1", "config: budget: give exactly one of flops, average_tokens, milliseconds, got flop"),
        ("budget.keep_tokens=9", "give exactly one of flops, average_tokens, milliseconds, got keep_tokens"),
        (("budget.flops=1", "budget.average_tokens=9"), "milliseconds, got flops, average_tokens"),
        ("budget.flops=null", "give exactly one of flops, average_tokens, milliseconds, got none"),
        ("budget=7", "budget must be a mapping of a kind to values, got 7"),
        ("budget.flops=[]", "config: budget: flops must be positive numbers, got []"),
        ("budget.flops=0", "config: budget: flops must be positive numbers, got [0]"),
        ("budget.flops=[3,-1]", "config: budget: flops must be positive numbers, got [3, -1]"),
        ("budget.flops=much", "config: budget: flops must be positive numbers, got ['much']"),
        ("budget.flops=.inf", "config: budget: flops must be positive numbers, got [inf]"),
        ("budget.flops=.nan", "config: budget: flops must be positive numbers, got [nan]"),
        ("budget.flops=true", "config: budget: flops must be positive numbers, got [True]"),
        ("pruner=[cdpruner]", "pruner must be a mapping of keys to values, got ['cdpruner']"),
        ("pruner.name=null", "pruner needs a name, got None"),
        ("task=3", "task must be a mapping of keys to values, got 3"),
        ("model=llava", "'llava' needs a path"),
        ("points", "override 'points' is not of the form key=value"),
    ],
    ids=str,
)
def test_mistakes(overrides, message):
    with pytest.raises(TokenPruneError) as error:
        load(*([overrides] if isinstance(overrides, str) else overrides))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["task", "pruner", "budget"])
def test_what_is_needed(missing, tmp_path):
    given = yaml.safe_load(SHIPPED.read_text())
    del given[missing]
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(TokenPruneError, match=f"^config needs the option '{missing}'$"):
        load_fit_config(tmp_path / "fit.yaml")


def test_everything_else_has_a_default():
    config = FitConfig(task=Part("scenes"), pruner=Part("random"), budget={"flops": (1.0,)})
    assert (config.samples, config.positions, config.direction, config.attention) == (
        *(50, "first_token", "forward", "remove"),
    )
