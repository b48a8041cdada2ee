"""From names to things, and what is refused before any weights load."""

import dataclasses

import pytest
from tiny import save_llava

from tokenprune.adapters import load
from tokenprune.adapters.llava import LlavaAdapter
from tokenprune.budget import Budget
from tokenprune.build import build, build_task
from tokenprune.config import Part, parse_config
from tokenprune.errors import BudgetError, ConfigError, ModelError, RegistryError, TokenPruneError
from tokenprune.pruners.base import PRUNERS, ScorePruner
from tokenprune.pruners.random import Random
from tokenprune.registry import Entry
from tokenprune.tasks.scenes import Scenes
from tokenprune.tracking import NoTracker
from tokenprune.types import Signal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """Nothing here may load weights."""

    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(load.AutoModelForImageTextToText, "from_pretrained", refuse)


def config(**changes):
    return parse_config({"pruner": "cdpruner", "budget": {"keep_tokens": [48, 24]}, **changes})


def test_cells():
    experiment = build(config(baselines=["divprune", {"name": "random", "seed": 1}, "random"]))
    assert [(cell.label, cell.budget) for cell in experiment.cells] == [
        ("none", None),
        *(
            (label, Budget(keep_tokens=keep))
            for label in ("divprune", "random seed=1", "random", "cdpruner")
            for keep in (48, 24)
        ),
    ]
    assert experiment.task == Scenes()
    assert experiment.tracker == NoTracker()
    assert experiment.model.adapter is LlavaAdapter
    assert experiment.model.spec.visual_tokens == 144


def test_resolved_config_has_every_option_and_is_a_fixed_point():
    resolved = build(config(pruner={"name": "cdpruner", "kernel": "rbf"}, seed=3)).config
    assert resolved.pruner.options["kernel"] == "rbf"
    assert resolved.pruner.options["conditioning"] == "clip_text"
    assert resolved.baselines[1] == Part("random", {"positions": "repacked", "seed": 3} | resolved.baselines[1].options)
    assert resolved.baselines[1].options["seed"] == 3
    assert resolved.task.options == dataclasses.asdict(Scenes())
    assert build(resolved).config == resolved
    assert parse_config(resolved.to_mapping()) == resolved


def test_labels_name_what_differs_from_the_defaults():
    labels = [cell.label for cell in build(config(pruner={"name": "cdpruner", "kernel": "rbf", "theta": 0.5})).cells]
    assert labels[-1] == "cdpruner kernel=rbf"


def test_the_same_method_twice_is_one():
    experiment = build(config(pruner="random", baselines=["random", "none", "none"]))
    assert [cell.label for cell in experiment.cells] == ["none", "random", "random"]


def test_none_alone_can_be_studied():
    experiment = build(config(pruner="none"))
    assert [cell.label for cell in experiment.cells] == ["none", "random", "random"]
    assert build(experiment.config).config == experiment.config


def test_the_run_s_seed_goes_to_methods_that_take_one():
    pruners = {cell.label: cell.pruner for cell in build(config(seed=5, baselines=["uniform"])).cells}
    assert pruners["random seed=5"] == Random(seed=5)
    assert "uniform" in pruners


def test_a_checkpoint_in_a_folder(folder):
    experiment = build(config(model={"name": "llava", "path": folder}, budget={"keep_tokens": 5}))
    assert experiment.model.spec.visual_tokens == 25
    assert experiment.model.spec.llm.kv_heads == 2


def test_build_task():
    assert build_task(Part("scenes", {"num_samples": 3})) == Scenes(num_samples=3)


MISTAKES = [
    ({"pruner": "cdprunr"}, RegistryError, "unknown pruner 'cdprunr'; did you mean 'cdpruner'?"),
    ({"baselines": ["devprune"]}, RegistryError, "unknown pruner 'devprune'; did you mean 'divprune'?"),
    (
        {"pruner": {"name": "cdpruner", "kernl": "rbf"}},
        ConfigError,
        "pruner 'cdpruner' has no option 'kernl'; did you mean",
    ),
    ({"pruner": {"name": "cdpruner", "kernel": "rbg"}}, ConfigError, "did you mean 'rbf'?"),
    ({"pruner": {"name": "cdpruner", "kernel": 3}}, ConfigError, "kernel must be text, got 3"),
    ({"pruner": {"name": "cdpruner", "theta": "x"}}, ConfigError, "theta must be a number, got 'x'"),
    ({"pruner": {"name": "cdpruner", "conditioning": "clip"}}, ConfigError, "conditioning"),
    ({"pruner": {"name": "none", "seed": 1}}, ConfigError, "pruner 'none' has no options, got seed"),
    ({"task": "scene"}, RegistryError, "unknown task 'scene'; did you mean 'scenes'?"),
    (
        {"task": {"name": "scenes", "split": "tset"}},
        ConfigError,
        "task 'scenes': split is 'tset'; did you mean 'test'?",
    ),
    ({"task": {"name": "scenes", "num_samples": 0}}, ConfigError, "num_samples must be at least 1"),
    ({"task": "folder"}, ConfigError, "task 'folder' needs the option 'path'"),
    ({"tracking": "wandbb"}, RegistryError, "unknown tracker 'wandbb'; did you mean 'wandb'?"),
    ({"tracking": {"name": "wandb", "mode": "offlin"}}, ConfigError, "did you mean 'offline'?"),
    ({"budget": {"keep_tokens": 145}}, BudgetError, "keep_tokens=145 exceeds the 144 visual tokens"),
    (
        {"model": {"name": "lava", "path": "x"}},
        RegistryError,
        "unknown model 'lava'; did you mean 'llava'? Allowed: embedded, llava",
    ),
    ({"model": {"name": "llava", "path": "/nowhere/at/all"}}, ModelError, "model '/nowhere/at/all' cannot be loaded"),
    ({"model": {"name": "embedded", "device": "cuda:99"}}, ConfigError, "cuda:99"),
    ({"model": {"name": "embedded", "device": "toaster"}}, ConfigError, "toaster"),
]


@pytest.mark.parametrize(("changes", "error", "message"), MISTAKES, ids=[m[2][:40] for m in MISTAKES])
def test_mistakes(changes, error, message):
    with pytest.raises(error) as caught:
        build(config(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_no_adapter_knows(tmp_path):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        build(config(model={"name": "llava", "path": str(tmp_path)}))
    for part in ("'bert'", "llava", "docs/add_an_adapter"):
        assert part in str(caught.value)


def test_a_signal_that_the_adapter_lacks(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Needy(ScorePruner):
        requires = frozenset({Signal.TEXT_ATTENTION})

        def score(self, tokens):
            raise NotImplementedError

    PRUNERS.names()
    monkeypatch.setitem(PRUNERS._entries, "needy", Entry("needy", Needy, "", None))
    with pytest.raises(
        TokenPruneError, match="pruner 'needy' needs the signals text_attention, which LlavaAdapter lacks"
    ):
        build(config(pruner="needy"))
