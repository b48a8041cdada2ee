"""The measurements of a fit, batch after batch: from its journal, or made now and added to it.

So a fit that was stopped goes on where it was, and one with other budgets measures only what it does not know yet.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tokenprune.core.budget import Budget
from tokenprune.core.errors import DataError
from tokenprune.core.sample import Sample
from tokenprune.engine.session import Session
from tokenprune.policies.divergence import Batch, Measured, Objective, Varied, early_signals, measure
from tokenprune.policies.layer_timing import time_layers
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.dop import DOP
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.dop.latency import LatencyModel
from tokenprune.pruners.dop.policy import Origin
from tokenprune.sweeps import provenance
from tokenprune.sweeps.journal import Journal

Line = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Measurements:
    """Measurements of a fit on some questions.

    Attributes:
        session: with the model.
        samples: the questions.
        batch_size: how many at a time.
        objective: how divergence is measured.
        base: which visual tokens stay.
        journal: of one configuration, open; lines of other origins are left alone and not used.
        origin: what else a measurement depends on: weights, data and code.
        console: shows progress; None shows none.
    """

    session: Session
    samples: Sequence[Sample]
    batch_size: int
    objective: Objective
    base: Pruner
    journal: Journal
    origin: Origin
    console: Console | None = None

    def text_tokens(self) -> int:
        """Tokens of a prompt besides the visual ones, mean over the questions, rounded."""
        return mean_text_tokens(self.session, self.samples, self.batch_size)

    def latency(self, text_tokens: int) -> LatencyModel:
        """Latency model of a decoder layer, for prompts with so many text tokens; timed once on each machine."""
        where = {"device": provenance.device_name(self.session.adapter.device), "text_tokens": text_tokens}
        for line in self._known("latency"):
            if where.items() <= line.items():
                return LatencyModel(tuple(line["attention"]), tuple(line["mlp"]))
        model = time_layers(self.session.adapter, text_tokens)
        self._note("latency", **where, **dataclasses.asdict(model))
        return model

    def curves(self, points: Sequence[Varied]) -> list[Measured]:
        """Divergences with each parameter varied alone: one item for each batch."""
        known = {line["batch"]: line for line in self._known("curves")}

        def work(start: int) -> None:
            result = measure(self.session, self._batch(start), self.objective, self.base, points)
            divergence = [[name, value, kl] for (name, value), kl in result.divergence.items()]
            known[start] = self._note("curves", batch=start, **{**dataclasses.asdict(result), "divergence": divergence})

        self._each("measuring curves", known, work)
        return [_measured(known[start]) for start in self._starts]

    def jointly(self, policies: Iterable[Depths]) -> dict[Depths, float]:
        """Divergence of whole policies in nats, mean over the questions."""
        wanted, signals = list(dict.fromkeys(policies)), early_signals(self.session, self.base)
        known = {(line["batch"], Depths(**line["depths"])): line["divergence"] for line in self._known("joint")}

        def work(start: int) -> None:
            batch = Batch(self.session, self._batch(start), self.objective, signals)
            for one in wanted:
                if (start, one) not in known:
                    divergence = float(batch.pruned(DOP.of(self.base, one), Budget(keep_tokens=one.keep)).sum())
                    self._note("joint", batch=start, depths=dataclasses.asdict(one), divergence=divergence)
                    known[start, one] = divergence

        done = [start for start in self._starts if all((start, one) in known for one in wanted)]
        self._each("measuring the best jointly", done, work)
        return {one: sum(known[start, one] for start in self._starts) / len(self.samples) for one in wanted}

    @property
    def _key(self) -> list[str]:
        return [self.origin.weights, self.origin.data, self.origin.code]

    @property
    def _starts(self) -> range:
        return range(0, len(self.samples), self.batch_size)

    def _batch(self, start: int) -> Sequence[Sample]:
        return self.samples[start : start + self.batch_size]

    def _known(self, what: str) -> list[Line]:
        return [line for line in self.journal.read() if (line.get("what"), line.get("origin")) == (what, self._key)]

    def _note(self, what: str, **content: Any) -> Line:
        line = {"what": what, "origin": self._key, **content}
        self.journal.append(line)
        return line

    def _each(self, title: str, done: Container[int], work: Callable[[int], None]) -> None:
        """Work on each batch that is not done, with a bar."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        left = [start for start in self._starts if start not in done]
        with Progress(*columns, TimeRemainingColumn(), console=self.console or Console(quiet=True)) as progress:
            bar = progress.add_task(title, total=len(self._starts), completed=len(self._starts) - len(left))
            for start in left:
                work(start)
                progress.advance(bar)


def open_journal(output: str, content: Any) -> Journal:
    """The journal that all work with equal content shares below a folder, made if need be and ready to append to.

    Args:
        output: the folder; the journal lies in one of its folders, which is named by a digest.
        content: what JSON can hold, of all that measurements depend on.

    Raises:
        DataError: if it cannot be written.
    """
    folder = Path(output) / provenance.digest(json.dumps(content, sort_keys=True))
    journal = Journal(folder / "measurements.jsonl")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        journal.open()
    except OSError as error:
        raise DataError(f"folder {str(folder)!r} cannot be written: {error.strerror}") from None
    return journal


def mean_text_tokens(session: Session, samples: Sequence[Sample], batch_size: int) -> int:
    """Tokens of a prompt besides the visual ones, mean over the questions, rounded."""
    total = 0
    for start in range(0, len(samples), batch_size):
        inputs = session.prepare(samples[start : start + batch_size]).inputs
        total += int(inputs["attention_mask"].sum()) - int(session.adapter.placeholders(inputs["input_ids"]).sum())
    return round(total / len(samples))


def _measured(line: Line) -> Measured:
    divergence = {(name, value): kl for name, value, kl in line["divergence"]}
    return Measured(divergence, line["seconds"], line["forward_seconds"])
