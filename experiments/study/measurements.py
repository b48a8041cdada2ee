"""The measurements of a study, batch after batch: from its journal, or made now and added to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from study import greedy
from study.entered import Entered
from tokenprune.core.budget import Budget
from tokenprune.core.plan import Operation, OperationPlan, Operations
from tokenprune.core.sample import Sample
from tokenprune.engine.session import Session
from tokenprune.policies.divergence import Batch, Objective, early_signals
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.dop.cost import Cost
from tokenprune.sweeps.journal import Journal
from tokenprune.tasks.base import Task

Line = dict[str, Any]
SPLITS = ("validation", "test")
RIGHT = 0.5  # an answer with at least this score counts as right


@dataclass(frozen=True, eq=False)
class PlanSet:
    """Plans for the same visual tokens, which are measured together.

    Attributes:
        name: what kind of plans, such as ``depth_wise``.
        base: which pruner chooses the tokens.
        tokens: how many enter the LLM.
        plans: (layers, 3) bool each, over ``Operation``.
    """

    name: str
    base: str
    tokens: int
    plans: tuple[greedy.Active, ...]

    @property
    def key(self) -> tuple[str, str, int]:
        """Which set it is."""
        return self.name, self.base, self.tokens


@dataclass(frozen=True, eq=False)
class Measured:
    """A plan set on all questions of a split; P plans, S questions.

    Attributes:
        first_token, teacher_forced: (P, S) KL(unpruned || pruned), nats.
        same: (P, S) bool, whether the greedy answer is the unpruned model's.
        right: (P, S) bool, whether the answer is right; only for test questions.
    """

    first_token: NDArray[np.float64]
    teacher_forced: NDArray[np.float64]
    same: NDArray[np.bool_]
    right: NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False)
class StudyMeasurements:
    """What is measured for a study.

    Attributes:
        session: with the model.
        task: scores the answers to test questions.
        questions: of each of ``SPLITS``.
        bases: the pruners by name.
        batch_size: questions at a time.
        max_new_tokens: longest answer, tokens.
        journal: of one configuration, open; lines of other origins are left alone and not used.
        origin: what else a measurement depends on: hashes of weights, data and code.
        console: shows progress; None shows none.
    """

    session: Session
    task: Task
    questions: Mapping[str, Sequence[Sample]]
    bases: Mapping[str, Pruner]
    batch_size: int
    max_new_tokens: int
    journal: Journal
    origin: Sequence[str]
    console: Console | None = None

    def measure(self, sets: Sequence[PlanSet]) -> dict[tuple[str, str, int], dict[str, Measured]]:
        """All plans on all questions; each batch is encoded once, and the choice of tokens is made once for a set."""
        known = {_place(line): line for line in self._known("plans")}
        units = [(split, start, one) for split in SPLITS for start in self._starts(split) for one in sets]
        left = [(split, start, one) for split, start, one in units if (split, start, *one.key) not in known]
        current: tuple[str, int] | None = None
        with self._progress() as progress:
            bar = progress.add_task("measuring plans", total=len(units), completed=len(units) - len(left))
            for split, start, one in left:
                if current != (split, start):
                    current, batch = (split, start), self._batch(split, start)
                line = self._line(split, start, one, batch)
                known[_place(line)] = line
                progress.advance(bar)
        return {one.key: {split: self._joined(known, split, one) for split in SPLITS} for one in sets}

    def path(self, base: str, tokens: int, rule: greedy.Rule, samples: int, cost: Cost) -> list[greedy.Step]:
        """Operations removed one by one, by their divergence at the first token on the first validation questions."""
        wanted = {"base": base, "tokens": tokens, "rule": rule, "samples": samples}
        steps = [_step(line) for line in self._known("step") if wanted.items() <= line.items()]
        layers = self.session.adapter.spec.llm.layers
        active = steps[-1].active if steps else np.ones((layers, len(Operation)), bool)
        if not greedy.removable(active, rule):
            return steps
        starts = range(0, samples, self.batch_size)
        entered = [
            Entered(self._batch("validation", start, samples), self.bases[base], Budget(keep_tokens=tokens))
            for start in starts
        ]

        def measure(active: greedy.Active) -> float:
            plan = operations(active)
            return sum(float(one.distances(plan).first_token.sum()) for one in entered) / samples

        with self._progress() as progress:
            total = len(greedy.removable(active, "free"))
            bar = progress.add_task(f"removing operations, {tokens} tokens, {rule}", total=total)
            for step in greedy.remove(active, measure, lambda a: cost.of(OperationPlan(_group(a), (tokens,))), rule):
                self._note("step", **wanted, **_written(step))
                steps.append(step)
                progress.update(bar, completed=total - len(greedy.removable(step.active, "free")))
        return steps

    def _batch(self, split: str, start: int, end: int | None = None) -> Batch:
        samples = self.questions[split][start : start + self.batch_size][: None if end is None else end - start]
        requires = frozenset[Any]().union(*(early_signals(self.session, base) for base in self.bases.values()))
        objective = Objective(teacher_forced=True, max_new_tokens=self.max_new_tokens)
        return Batch(self.session, samples, objective, requires)

    def _line(self, split: str, start: int, one: PlanSet, batch: Batch) -> Line:
        samples = self.questions[split][start : start + self.batch_size]
        entered = Entered(batch, self.bases[one.base], Budget(keep_tokens=one.tokens))
        found: dict[str, list[Any]] = {"first_token": [], "teacher_forced": [], "same": [], "right": []}
        for plan in map(operations, one.plans):
            distances = entered.distances(plan)
            found["first_token"].append(_rounded(distances.first_token))
            found["teacher_forced"].append(_rounded(distances.teacher_forced))
            found["same"].append(_bits(distances.same.tolist()))
            if split == "test":
                pairs = zip(samples, entered.answers(plan, self.max_new_tokens), strict=True)
                found["right"].append(_bits((self.task.score(*pair) or 0) >= RIGHT for pair in pairs))
        where = {"split": split, "start": start, "set": one.name, "base": one.base, "tokens": one.tokens}
        return self._note("plans", **where, **found)

    def _joined(self, known: Mapping[Any, Line], split: str, one: PlanSet) -> Measured:
        lines = [known[split, start, *one.key] for start in self._starts(split)]

        def bits(name: str) -> NDArray[np.bool_]:
            rows = (np.array([[mark == "1" for mark in row] for row in line[name]]) for line in lines)
            return np.concatenate(list(rows), 1)

        def numbers(name: str) -> NDArray[np.float64]:
            return np.concatenate([np.array(line[name], dtype=np.float64) for line in lines], 1)

        right = bits("right") if split == "test" else None
        return Measured(numbers("first_token"), numbers("teacher_forced"), bits("same"), right)

    def _starts(self, split: str) -> range:
        return range(0, len(self.questions[split]), self.batch_size)

    def _known(self, what: str) -> Iterator[Line]:
        wanted = {"what": what, "origin": list(self.origin)}
        return (line for line in self.journal.read() if wanted.items() <= line.items())

    def _note(self, what: str, **content: Any) -> Line:
        line = {"what": what, "origin": list(self.origin), **content}
        self.journal.append(line)
        return line

    def _progress(self) -> Progress:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        return Progress(*columns, TimeRemainingColumn(), console=self.console or Console(quiet=True))


def operations(active: greedy.Active) -> Operations:
    """Of one group of visual tokens."""
    return Operations(_group(active))


def _group(active: greedy.Active) -> Tensor:
    return torch.from_numpy(active.copy())[..., None]


def _place(line: Line) -> tuple[str, int, str, str, int]:
    return line["split"], line["start"], line["set"], line["base"], line["tokens"]


def _step(line: Line) -> greedy.Step:
    active = np.array([[mark == "1" for mark in row] for row in line["active"]])
    return greedy.Step(line["layer"], Operation[line["operation"]], active, line["divergence"], line["cost"])


def _written(step: greedy.Step) -> Line:
    rows = [_bits(row) for row in step.active.tolist()]
    found = {"layer": step.layer, "operation": step.operation.name, "divergence": step.divergence, "cost": step.cost}
    return {**found, "active": rows}


def _bits(marks: Any) -> str:
    return "".join("1" if mark else "0" for mark in marks)


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]
