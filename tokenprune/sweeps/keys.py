"""The key of a cell: it covers what is asked, the code, the weights and the data, and nothing of other cells.

So an equal cell of another sweep is found again, and an edited pruner, another checkpoint or other questions have other
keys.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenprune.adapters.base import ModelAdapter
from tokenprune.core.sample import Sample
from tokenprune.core.sizes import ModelSpec
from tokenprune.sweeps import provenance
from tokenprune.sweeps.build import Cell, Experiment
from tokenprune.tasks.base import Task

T = TypeVar("T")


@dataclass(frozen=True)
class Keyed:
    """A cell with its key.

    Attributes:
        cell: a pruner at a budget.
        key: of it.
        asked: all that the key covers of the configuration, as one would write it in YAML.
        origin: what else it covers; the device is not known yet.
    """

    cell: Cell
    key: str
    asked: dict[str, Any]
    origin: provenance.Provenance


def key_cells(experiment: Experiment, samples: Sequence[Sample]) -> list[Keyed]:
    """The cells of an experiment with their keys; loads no weights.

    Args:
        experiment: as built.
        samples: the questions of its task.
    """
    model, spec = experiment.model, experiment.model.spec
    shared = provenance.Provenance(
        code="",
        git=provenance.git_state(),
        versions=provenance.versions(),
        device="",
        model=provenance.checkpoint_hash(model.path, model.commit),
        data=provenance.data_hash(samples),
    )
    code = code_hashes(dict(enumerate(experiment.cells)), experiment.task, spec, model.adapter)
    found = []
    for index, cell in enumerate(experiment.cells):
        asked, origin = _asked(experiment, cell), dataclasses.replace(shared, code=code[index])
        key = provenance.digest(json.dumps(asked, sort_keys=True), origin.code, origin.model, origin.data)
        found.append(Keyed(cell, key, asked, origin))
    return found


def _asked(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    config = experiment.config
    return {
        "model": dataclasses.asdict(config.model),
        "task": config.task.to_mapping(),
        "pruner": cell.part.to_mapping(),
        "budget": cell.budget.to_mapping() if cell.budget else {},
        "max_new_tokens": config.max_new_tokens,
        "timing_repeats": config.timing_repeats,
    }


def code_hashes(cells: Mapping[T, Cell], task: Task, spec: ModelSpec, adapter: type[ModelAdapter]) -> dict[T, str]:
    """Hash of the source that decides about each cell, and of what its task says decides outside of it."""
    known: dict[frozenset[type], str] = {}
    hashes = {}
    for name, cell in cells.items():
        selectors = (step.selector for step in cell.pruner.steps(spec))
        classes = frozenset({type(task), adapter, type(cell.pruner), *map(type, selectors)})
        if classes not in known:
            known[classes] = provenance.digest(provenance.code_hash(*classes), task.fingerprint())
        hashes[name] = known[classes]
    return hashes
