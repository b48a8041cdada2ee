"""Run a study: measure its grids and its greedy paths, as far as an earlier call did not, and write the results.

As a script: ``python experiments/study/run.py experiments/dop_additivity/study.yaml [samples=50 ...]``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds its own folder alone

from rich.console import Console

from study import greedy, report
from study.command import ending
from study.config import StudyConfig, load_study_config
from study.measurements import SPLITS, PlanSet, StudyMeasurements
from study.results import Header, Row, rows, save
from tokenprune.core.errors import ConfigError
from tokenprune.core.plan import OperationPlan
from tokenprune.core.sample import Sample
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import PRE_LLM
from tokenprune.engine.loading import Checkpoint
from tokenprune.policies.measurements import mean_text_tokens, open_journal
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.dop import cost as costs
from tokenprune.pruners.dop.depths import Depths
from tokenprune.sweeps import provenance
from tokenprune.sweeps.build import build_base, build_task
from tokenprune.sweeps.journal import Journal

RULES: tuple[greedy.Rule, ...] = ("free", "depth_wise")


@dataclass(frozen=True)
class Checked:
    """What a configuration names, before any weights load.

    Attributes:
        checkpoint: of the model.
        bases: the pruners by name.
        questions: of each split.
    """

    checkpoint: Checkpoint
    bases: dict[str, Pruner]
    questions: dict[str, Sequence[Sample]]


def checked(config: StudyConfig) -> Checked:
    """Find what is wrong with a configuration.

    Raises:
        TokenPruneError: says what.
    """
    built = {grid.pruner.name: build_base(config.model, grid.pruner) for grid in config.bases}
    bases = {name: base for name, (_, _, base) in built.items()}
    checkpoint = next(iter(built.values()))[0]
    _check(config, bases, checkpoint.spec)
    parts = {"validation": config.validation, "test": config.test}
    questions = {split: build_task(part).samples() for split, part in parts.items()}
    for samples in questions.values():
        checkpoint.check_samples(samples)
    if config.samples > len(questions["validation"]):
        raise ConfigError(f"samples is {config.samples}, but there are {len(questions['validation'])} for validation")
    return Checked(checkpoint, bases, questions)


def study(config: StudyConfig, console: Console | None = None) -> Path:
    """Measure what a configuration names, as far as an earlier call did not.

    Args:
        config: as loaded.
        console: shows progress; None shows none.

    Returns:
        The file of results, beside the journal.

    Raises:
        TokenPruneError: if something is wrong with configuration, data, results folder or checkpoint, before any
            weights load.
    """
    plan = checked(config)
    spec, questions, bases = plan.checkpoint.spec, plan.questions, plan.bases
    task, journal = build_task(config.test), _journal(config)
    session = plan.checkpoint.load()
    selectors = {type(step.selector) for base in bases.values() for step in base.steps(spec)}
    origin = (
        provenance.model_hash(session.adapter.model),
        provenance.data_hash(sample for split in SPLITS for sample in questions[split]),
        provenance.code_hash(type(task), type(session.adapter), *map(type, bases.values()), *selectors),
    )
    sizes = {"batch_size": config.batch_size, "max_new_tokens": config.max_new_tokens}
    measurements = StudyMeasurements(
        session, task, questions, bases, **sizes, journal=journal, origin=origin, console=console
    )
    text = mean_text_tokens(session, questions["validation"], config.batch_size)
    cost = costs.flops(spec, text)
    found = [*_grids(config, measurements, cost), *_paths(config, measurements, cost)]
    asked = {split: tuple(sample.kind for sample in questions[split]) for split in SPLITS}
    budgets = {n: cost.of(OperationPlan.drop_at(spec, (PRE_LLM,), (n,), spec.visual_tokens)) for n in config.budgets}
    header = Header(spec.llm.layers, spec.visual_tokens, text, budgets, **asked)
    path = journal.path.with_name("results.jsonl")
    save(path, header, found, config.to_mapping(), origin)
    return path


def shapes(layers: int) -> list[Depths]:
    """All pairs of depths without dead work, but for attention in no layer; one visual token stands for any number."""
    return [
        Depths(attention=attention, mlp=mlp, keep=1).normalised(layers)
        for attention in range(1, layers + 1)
        for mlp in range(attention)
    ]


def _grids(config: StudyConfig, measurements: StudyMeasurements, cost: costs.Cost) -> list[Row]:
    spec = measurements.session.adapter.spec
    depths = shapes(spec.llm.layers)
    plans = tuple(one.plan(spec, 1).active[..., 1].numpy() for one in depths)
    sets = [PlanSet("depth_wise", grid.pruner.name, keep, plans) for grid in config.bases for keep in grid.tokens]
    measured = measurements.measure(sets)
    return [row for one in sets for row in rows(one, measured[one.key], depths, cost)]


def _paths(config: StudyConfig, measurements: StudyMeasurements, cost: costs.Cost) -> list[Row]:
    base, sets = config.bases[0].pruner.name, []
    for keep in config.greedy:
        for rule in RULES:
            steps = measurements.path(base, keep, rule, config.samples, cost)
            sets.append(PlanSet(f"greedy_{rule}", base, keep, tuple(step.active for step in steps)))
    measured = measurements.measure(sets)
    return [row for one in sets for row in rows(one, measured[one.key], None, cost)]


def _check(config: StudyConfig, bases: dict[str, Pruner], spec: ModelSpec) -> None:
    for name, base in bases.items():
        if [step.stage for step in base.steps(spec)] != [PRE_LLM] or base.operations(spec) is not None:
            raise ConfigError(f"pruner {name!r}: policies are studied only over one that selects before the LLM alone")
    grids, total = [set(grid.tokens) for grid in config.bases], spec.visual_tokens
    most = max(*set.union(*grids), *config.greedy, *config.budgets)
    if most > total:
        raise ConfigError(f"{most} visual tokens cannot be kept, there are {total}")
    if total not in set.union(*grids):
        raise ConfigError(
            f"bases: one of them must hold {total} visual tokens, which is all: a fit's curves start there"
        )
    shared, least = set.intersection(*grids), min(config.budgets)
    if not shared or min(shared) > least:
        raise ConfigError(f"bases: all of them must hold a number of visual tokens within the least budget, {least}")
    for keep in config.greedy:
        if keep not in grids[0]:
            raise ConfigError(f"greedy: the first base must hold {keep} visual tokens too, to be compared with")


def _journal(config: StudyConfig) -> Journal:
    """The journal that studies of the same pruners, questions and batches share, ready to append to."""
    mapping = config.to_mapping()
    relevant = {key: mapping[key] for key in ("model", "validation", "test", "batch_size", "max_new_tokens")}
    pruners = [grid.pruner.to_mapping() for grid in config.bases]
    return open_journal(config.output, [relevant, pruners])


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", help="test.num_samples=120 ...")
    asked = parser.parse_args(arguments)
    with ending("study"):
        results = study(load_study_config(asked.config, asked.overrides), console=Console(stderr=True))
        print(f"results: {results}")
        print(f"report: {report.write(results, results.parent)}")


if __name__ == "__main__":
    main()
