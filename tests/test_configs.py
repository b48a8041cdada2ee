"""Every YAML file that ships is valid, and those of one thing list its options at their defaults."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from benchmark_time import ROWS, card_checkpoint
from study.config import load_study_config
from study.run import checked

from tokenprune.adapters.registry import ADAPTERS
from tokenprune.bench.config import load_bench_config
from tokenprune.bench.measure import cells
from tokenprune.core.options import construct
from tokenprune.policies.fit import grid
from tokenprune.policies.fit_config import load_fit_config
from tokenprune.pruners.base import PRUNERS
from tokenprune.pruners.dop import policy_file
from tokenprune.sweeps.build import build, build_all, build_base, build_task
from tokenprune.sweeps.config import Part, load_config, parse_config
from tokenprune.sweeps.grid import load_sweep
from tokenprune.sweeps.model_config import EMBEDDED, ModelConfig
from tokenprune.sweeps.tracking import TRACKERS
from tokenprune.tasks.base import TASKS
from tokenprune.tasks.benchmarks import BENCHMARKS

ROOT = Path(__file__).parents[1]
FITS = {ROOT / "configs/fit_policy.yaml", *(ROOT / "experiments").rglob("fit*.yaml")}
STUDIES = set((ROOT / "experiments").rglob("study*.yaml"))
POLICIES = set((ROOT / "experiments").rglob("policies/**/*.yaml"))
BENCHES = {ROOT / "configs/bench.yaml", *(ROOT / "experiments").rglob("bench*.yaml")}
RUNS = (
    {*(ROOT / "configs").glob("*.yaml"), *(ROOT / "experiments").rglob("*.yaml")} - FITS - STUDIES - POLICIES - BENCHES
)
BENCHMARK_SWEEPS = sorted((ROOT / "configs/benchmarks").glob("*.yaml"))
REGISTRIES = {"pruner": PRUNERS, "task": TASKS, "tracking": TRACKERS}
PARTS = [(kind, path) for kind in REGISTRIES for path in sorted((ROOT / "configs" / kind).glob("*.yaml"))]


@pytest.mark.parametrize("path", sorted(RUNS), ids=lambda path: str(path.relative_to(ROOT)))
def test_runs(path, monkeypatch):
    monkeypatch.chdir(ROOT)  # files that they name are named from there
    asked = load_sweep(path)
    assert all(experiment.cells for experiment in build_all(asked.runs, asked.names))


@pytest.mark.parametrize("path", BENCHMARK_SWEEPS, ids=lambda path: path.stem)
def test_benchmarks(path):
    """Nothing of the hub is here: the sizes come from the model's card."""
    asked = load_sweep(path, ["max_new_tokens=128"])  # else lmms-eval would be asked
    built = build_all(asked.runs, asked.names, card_checkpoint)
    assert all(len(experiment.cells) >= 1 + 3 * 5 for experiment in built)
    assert len({experiment.task.task for experiment in built}) == len(built) >= 6
    assert all(experiment.task.task in BENCHMARKS for experiment in built)
    assert all(BENCHMARKS[each.task.task].media == "video" or each.task.task in ROWS for each in built)
    assert "NOBODY HAS RUN THIS FILE ON THE REAL CHECKPOINT YET" in path.read_text()


@pytest.mark.parametrize("path", sorted(FITS), ids=lambda path: str(path.relative_to(ROOT)))
def test_fits(path):
    config = load_fit_config(path)
    checkpoint, _, _ = build_base(config.model, config.pruner)
    assert grid(checkpoint.spec, config)
    assert build_task(config.task)


@pytest.mark.parametrize("path", sorted(BENCHES), ids=lambda path: str(path.relative_to(ROOT)))
def test_benches(path):
    assert cells(load_bench_config(path))[1]


@pytest.mark.parametrize("path", sorted(POLICIES), ids=lambda path: str(path.relative_to(ROOT)))
def test_policies(path):
    assert policy_file.load(path).chosen.measured is not None


@pytest.mark.parametrize("path", sorted(STUDIES), ids=lambda path: str(path.relative_to(ROOT)))
def test_studies(path):
    assert checked(load_study_config(path)).questions.keys() == {"validation", "test"}


def test_the_quickstart_is_the_documented_grid():
    cells = build(load_config(ROOT / "configs/quickstart.yaml")).cells
    before = ("random", "uniform", "divprune", "visionzip")
    inside = ("fastv layer=1", "sparsevlm", "pyramiddrop", "dart layer=1", "cdpruner+fastv layer=3")
    assert [(cell.label, cell.budget and cell.budget.average_tokens) for cell in cells] == [
        ("none", None),
        *((name, average) for name in (*before, *inside) for average in (72, 48, 36)),
        ("dop base=none attention_depth=3 mlp_depth=1 query_depth=2 keep_tokens=144", None),
        *(("cdpruner", average) for average in (72, 48, 36)),
    ]


@pytest.mark.parametrize(("kind", "path"), PARTS, ids=lambda value: getattr(value, "stem", value))
def test_parts(kind, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("questions.jsonl").touch()
    options = yaml.safe_load(path.read_text())
    assert options.pop("name") == path.stem
    target = REGISTRIES[kind].get(path.stem)
    fields = [f for f in dataclasses.fields(target) if f.init]
    assert options.keys() == {f.name for f in fields}
    needed = {f.name: options[f.name] for f in fields if f.default is dataclasses.MISSING}
    assert construct(target, options, kind) == construct(target, needed, kind)


@pytest.mark.parametrize("kind", REGISTRIES)
def test_everything_that_ships_has_a_file(kind):
    registry = REGISTRIES[kind]
    ours = {name for name in registry.names() if registry.get(name).__module__.startswith("tokenprune.")}
    assert {path.stem for _, path in PARTS if path.parent.name == kind} == ours


def test_models():
    paths = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "configs/model").glob("*.yaml")}
    for stem, options in paths.items():
        assert options["name"] == stem
        construct(ModelConfig, options, "model")
    assert paths.keys() == {EMBEDDED, *ADAPTERS.names()}


def test_a_part_fits_into_a_run():
    run = {
        "task": yaml.safe_load((ROOT / "configs/task/scenes.yaml").read_text()),
        "pruner": yaml.safe_load((ROOT / "configs/pruner/cdpruner.yaml").read_text()),
        "budget": {"keep_tokens": 1},
    }
    assert build_task(parse_config(run).task) == build_task(Part("scenes"))
