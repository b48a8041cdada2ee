"""From names to things, and what is refused before any weights load."""

import dataclasses

import pytest
import yaml

from tokenprune.adapters.llava import LlavaAdapter
from tokenprune.core.budget import Budget
from tokenprune.core.errors import BudgetError, ConfigError, ModelError, RegistryError
from tokenprune.core.registry import Entry
from tokenprune.core.signals import TextAttention, TowerAttention
from tokenprune.core.stages import PRE_LLM, decoder
from tokenprune.engine import loading as load
from tokenprune.pruners.base import PRUNERS, ScorePruner, create_pruner
from tokenprune.pruners.dop import policy_file
from tokenprune.pruners.dop.curves import Curves
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.dop.policy import Limit, Objective, Origin, Policy
from tokenprune.pruners.dop.solve import Candidate
from tokenprune.pruners.random import Random
from tokenprune.sweeps.build import build, build_task
from tokenprune.sweeps.config import Part, parse_config
from tokenprune.sweeps.store import run_id
from tokenprune.sweeps.tracking import NoTracker
from tokenprune.tasks.scenes import Scenes
from tokenprune.testing.checkpoints import save_llava


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


def cells_of(**changes):
    """Labels and budgets of the cells, without the baselines that are always there."""
    cells = build(config(**changes)).cells
    return [(cell.label, cell.budget) for cell in cells if cell.part.name not in ("none", "random")]


def test_a_list_of_pruners_is_one_pruner():
    changes = {"pruner": ["cdpruner", {"name": "fastv", "layer": 3}], "baselines": [["random", "fastv"]], "seed": 5}
    assert [label for label, _ in cells_of(**changes)] == [
        *["random seed=5+fastv"] * 2,
        *["cdpruner+fastv layer=3"] * 2,
    ]
    resolved = build(config(**changes)).config
    random, fastv = create_pruner("random", seed=5), create_pruner("fastv")
    assert resolved.baselines[-1].options == {
        "pruners": [
            {"name": "random", **dataclasses.asdict(random)},
            {"name": "fastv", **dataclasses.asdict(fastv)},
        ]
    }
    assert build(resolved).config == resolved
    again = parse_config(yaml.safe_load(yaml.safe_dump(resolved.to_mapping())))
    assert again == resolved
    assert run_id(again) == run_id(resolved)


def test_a_composition_can_be_written_out():
    listed = build(config(pruner=["cdpruner", "fastv"]))
    for pruner in ("compose", {"name": "compose"}, {"name": "compose", "pruners": ["cdpruner", {"name": "fastv"}]}):
        assert build(config(pruner=pruner)) == listed


def test_pruners_with_budgets_of_their_own_have_one_cell():
    two = [{"name": "cdpruner", "keep_tokens": 64}, {"name": "fastv", "keep_ratio": 0.5}]
    assert cells_of(pruner=two, baselines=["divprune"]) == [
        ("divprune", Budget(keep_tokens=48)),
        ("divprune", Budget(keep_tokens=24)),
        ("cdpruner keep_tokens=64+fastv keep_ratio=0.5", Budget(keep_tokens=32)),
    ]
    halves = [{"name": "fastv", "layer": layer, "keep_ratio": 0.5} for layer in (1, 3)]
    assert cells_of(pruner=halves) == [
        ("fastv layer=1 keep_ratio=0.5+fastv layer=3 keep_ratio=0.5", Budget(keep_ratio=0.25))
    ]
    resolved = build(config(pruner=two)).config
    assert build(resolved).config == resolved
    preset = {"name": "sparsevlm", "preset": 192}
    assert cells_of(pruner=preset) == [("sparsevlm preset=192", Budget(keep_ratio=110 / 576))]


def test_average_budgets():
    assert cells_of(pruner="fastv", budget={"average_tokens": [96, 72.5]}) == [
        ("fastv", Budget(average_tokens=96.0)),
        ("fastv", Budget(average_tokens=72.5)),
    ]


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
    lists = {"name": "pyramiddrop", "ratios": [0.5, 0.25, 0.125], "layers": [2, 3, 4]}
    labels = [cell.label for cell in build(config(pruner=lists)).cells]
    assert labels[-1] == "pyramiddrop layers=[2, 3, 4]"
    for pruner, label in {
        (): "sparsevlm",
        (("version", "plus"),): "sparsevlm version=plus",
        (("positions", "repacked"),): "sparsevlm",
        (("version", "plus"), ("positions", "repacked")): "sparsevlm positions=repacked version=plus",
    }.items():
        assert build(config(pruner={"name": "sparsevlm", **dict(pruner)})).cells[-1].label == label


def test_a_pruner_inside_another_is_named_like_one():
    for base, label in {
        "divprune": "divprune",
        "cdpruner": None,  # the default
        "random": "random",
        ("random", "seed", 2): "(random seed=2)",
        ("cdpruner", "keep_tokens", 9): "(cdpruner keep_tokens=9)",
    }.items():
        given = base if isinstance(base, str) else {"name": base[0], base[1]: base[2]}
        cells = build(config(pruner={"name": "dop", "attention_depth": 3, "base": given})).cells
        assert cells[-1].label == " ".join(["dop", *([f"base={label}"] if label else []), "attention_depth=3"])


def save_policy(path, *, depth=2):
    """A file as fit-policy writes it, for the embedded model."""
    curves = Curves.of(6, 144, attention={depth: 0.1}, mlp={1: 0.1}, tokens={20: 0.1})
    policy_file.save(
        Policy(
            origin=Origin(model="embedded", weights="w", data="d", code="c"),
            base={"name": "cdpruner", "kernel": "rbf"},
            objective=Objective(samples=1),
            curves=curves,
            budget=Limit(kind="average_tokens", value=20.0),
            chosen=Candidate(Depths(attention=depth, mlp=1, query=1, keep=20), 0.3, 10.0),
        ),
        path,
    )
    return {"name": "dop", "policy": str(path)}


def test_a_policy_is_named_by_its_base_and_its_file(tmp_path):
    experiment = build(config(pruner=save_policy(tmp_path / "some/where/half.yaml")))
    assert experiment.cells[-1].label == "dop base=(cdpruner kernel=rbf) policy=half"
    assert experiment.cells[-1].budget == Budget(keep_tokens=20)
    assert build(experiment.config).cells == experiment.cells


def test_two_policies_of_one_name_are_two_cells(tmp_path):
    paths = [tmp_path / folder / "half.yaml" for folder in "ab"]
    parts = [save_policy(path, depth=depth) for path, depth in zip(paths, (2, 3), strict=True)]
    alone = save_policy(tmp_path / "quarter.yaml")
    cells = build(config(pruner=alone, baselines=[*parts, parts[0]])).cells
    assert [cell.label for cell in cells if cell.part.name == "dop"] == [
        *(f"dop policy={path}" for path in paths),
        "dop base=(cdpruner kernel=rbf) policy=quarter",
    ]
    assert [cell.part.options["attention_depth"] for cell in cells if cell.part.name == "dop"] == [2, 3, 2]


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
    ({"pruner": {"name": "none", "seed": 1}}, ConfigError, "pruner 'none' has no option 'seed'"),
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
    ({"budget": {"keep_tokens": 145}}, BudgetError, "pruner 'random': keep_tokens=145 exceeds the 144 visual tokens"),
    (
        {"pruner": {"name": "fastv", "layer": 3}, "budget": {"average_tokens": [144, 72]}},
        BudgetError,
        "pruner 'fastv layer=3': average_tokens=72 cannot be met: with nothing kept, the layers before the "
        "pruning stages spend 72 of 144 visual tokens on average",
    ),
    (
        {"pruner": ["cdpruner", {"name": "fastv", "layer": 6}]},
        ConfigError,
        "pruner 'cdpruner+fastv layer=6': the composition of CDPruner and FastV prunes at layer=6, but the LLM has 6",
    ),
    (
        {"baselines": [[{"name": "cdpruner", "keep_tokens": 9}, {"name": "fastv", "keep_tokens": 10}]]},
        BudgetError,
        "pruner 'cdpruner keep_tokens=9+fastv keep_tokens=10': FastV: keep_tokens=10 exceeds the 9 visual tokens",
    ),
    ({"pruner": {"name": "fastv", "layer": 0}}, ConfigError, "pruner 'fastv layer=0': FastV prunes at layer=0"),
    ({"pruner": {"name": "compose", "pruners": 3}}, ConfigError, "pruners must be a list, each item text or a mapping"),
    ({"pruner": {"name": "compose", "pruner": []}}, ConfigError, "has no option 'pruner'; did you mean 'pruners'?"),
    ({"pruner": {"name": "compose", "pruners": [{}]}}, ConfigError, "needs a name, got None"),
    (
        {"model": {"name": "lava", "path": "x"}},
        RegistryError,
        "unknown model 'lava'; did you mean 'llava'? Allowed: embedded",
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


@pytest.mark.parametrize(
    ("requires", "layer", "message"),
    [
        ("text_attention", None, "LlavaAdapter cannot give the signals text_attention; it offers clip"),
        ("cls_attention", 3, "inside the LLM (layer=3) cannot give the signals cls_attention; it offers head_keys"),
        ("text_attention", 3, None),
        ("cls_attention", None, None),
    ],
)
@pytest.mark.parametrize("composed", [False, True])
def test_signals_are_those_of_the_stage(monkeypatch, requires, layer, message, composed):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Needy(ScorePruner):
        @property
        def requires(self):
            return frozenset({{"text_attention": TextAttention(), "cls_attention": TowerAttention()}[requires]})

        def stages(self, spec):
            return (PRE_LLM if layer is None else decoder(layer),)

        def score(self, tokens):
            raise NotImplementedError

    PRUNERS.names()
    monkeypatch.setitem(PRUNERS._entries, "needy", Entry("needy", Needy, "", None))
    pruner, label = (
        (["needy", {"name": "fastv", "layer": 5}], "needy+fastv layer=5") if composed else ("needy", "needy")
    )
    if message is None:
        assert build(config(pruner=pruner)).cells[-1].label == label
        return
    with pytest.raises(ModelError) as caught:
        build(config(pruner=pruner))
    assert str(caught.value).startswith(f"pruner '{label}': ")
    assert message in str(caught.value)
