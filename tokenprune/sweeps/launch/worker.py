"""Does a job in the process that it is called in: what every launcher runs, here or far away."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tokenprune.core.errors import DataError, ModelError
from tokenprune.core.sample import Sample
from tokenprune.costs.memory import ran_out
from tokenprune.engine.session import Session
from tokenprune.sweeps import provenance
from tokenprune.sweeps.build import Cell, build_checkpoint, build_task
from tokenprune.sweeps.config import Part
from tokenprune.sweeps.evaluate import Asked, Evaluator
from tokenprune.sweeps.imports import import_files
from tokenprune.sweeps.keys import code_hashes
from tokenprune.sweeps.launch.base import Answered, Batch, Event, Failed, Halved, Job, Measured
from tokenprune.sweeps.make_parts import make_pruner
from tokenprune.sweeps.model_config import ModelConfig
from tokenprune.tasks.base import Task


class Worker:
    """Holds the last model and task between jobs, so that a process loads each once."""

    def __init__(self) -> None:
        self._model: tuple[ModelConfig, Session, str] | None = None
        self._task: tuple[Part, Task, dict[str, Sample], str] | None = None

    def run(self, job: Job) -> Iterator[Event]:
        """Answer the job's batches, cell after cell, then measure.

        A cell that fails is reported and left out from then on. One that is out of memory gets smaller batches.

        Raises:
            TokenPruneError: if the model cannot be loaded, model, data or code are not those that the job is about, or
                a picture cannot be decoded.
        """
        import_files(job.imports)
        task, samples, data = self._questions(job.task)
        session, weights = self._session(job.model)
        cells = {key: _cell_of(job, key) for key in job.cells}
        code = code_hashes(cells, task, session.adapter.spec, type(session.adapter))
        for what, here, there in (("weights", weights, job.origin.model), ("questions", data, job.origin.data)):
            if here != there:
                raise ModelError(f"a worker has other {what} ({here}) than the process that started it ({there})")
        if code != job.origin.code:
            raise ModelError("a worker has other code of tokenprune or a pruner than the process that started it")
        running = _RunningJob(Evaluator(session, task, job.max_new_tokens), cells)
        for batch in job.batches:
            yield from running.batch(batch, [samples[name] for name in batch.samples])
        questions, device = list(samples.values()), provenance.device_name(session.adapter.device)
        for key in job.measured:
            yield from running.measure(key, questions, job.timing_repeats, device)

    def _session(self, config: ModelConfig) -> tuple[Session, str]:
        if self._model is None or self._model[0] != config:
            self._model = None  # the memory of the last one is needed
            checkpoint = build_checkpoint(config)
            self._model = config, checkpoint.load(), provenance.checkpoint_hash(checkpoint.path, checkpoint.commit)
        return self._model[1:]

    def _questions(self, part: Part) -> tuple[Task, dict[str, Sample], str]:
        if self._task is None or self._task[0] != part:
            task = build_task(part)
            samples = task.samples()
            self._task = part, task, {sample.id: sample for sample in samples}, provenance.data_hash(samples)
        return self._task[1:]


def _cell_of(job: Job, key: str) -> Cell:
    wanted = job.cells[key]
    part, pruner = make_pruner(wanted.pruner, 0)
    return Cell(wanted.label, part, pruner, wanted.budget)


@dataclass
class _RunningJob:
    """A job that is being done.

    Attributes:
        evaluator: answers.
        cells: by key.
        size: questions that are encoded at a time; 0 for whole batches.
        limits: questions at a time, of cells that ran out of memory.
        failed: keys of the cells that cannot go on.
    """

    evaluator: Evaluator
    cells: dict[str, Cell]
    size: int = 0
    limits: dict[str, int] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def batch(self, batch: Batch, samples: Sequence[Sample]) -> Iterator[Event]:
        """Let the batch's cells answer."""
        done = 0
        while done < len(samples):
            part = samples[done : done + (self.size or len(samples))]
            keys = [key for key in batch.cells if key not in self.failed]
            alike = [key for key in keys if self.limits.get(key, len(part)) >= len(part)]
            start, (asked, full) = time.perf_counter(), self._ask(part, alike)
            share = (time.perf_counter() - start) / max(1, len(alike))
            if full and len(part) > 1:
                self.size = (len(part) + 1) // 2
                yield from (Halved(key, self.size) for key in alike)
                continue
            for key in keys:
                yield from self._cell(key, part, asked if key in alike else None, share)
            done += len(part)

    def _ask(self, samples: Sequence[Sample], keys: Sequence[str]) -> tuple[Asked | None, bool]:
        """The questions encoded for these cells, or nothing, and whether that is because memory ran out.

        Raises:
            DataError: if a picture or video cannot be decoded, which is no cell's fault.
        """
        if not keys:
            return None, False
        try:
            return self.evaluator.ask(samples, [self.cells[key] for key in keys]), False
        except DataError:
            raise
        except Exception as error:  # each cell meets it again alone, or does not need what failed
            return None, ran_out(error)

    def _cell(self, key: str, samples: Sequence[Sample], asked: Asked | None, share: float) -> Iterator[Event]:
        """Let one cell answer questions.

        Args:
            key: of the cell.
            samples: the questions.
            asked: the questions encoded; None to encode them for this cell alone.
            share: seconds that it took, the cell's part.
        """
        done, size = 0, min(self.limits.get(key, len(samples)), len(samples))
        while done < len(samples):
            part, start = samples[done : done + size], time.perf_counter()
            try:
                lines = self.evaluator.answer(self.cells[key], asked or self.evaluator.ask(part, [self.cells[key]]))
            except Exception as error:  # whatever a method does wrong, the other cells go on
                if not ran_out(error) or size == 1:
                    yield self._fail(key, error)
                    return
                size = self.limits[key] = (size + 1) // 2
                yield Halved(key, size)
            else:
                yield Answered(key, lines, time.perf_counter() - start + share)
                done, share = done + len(part), 0.0
            asked = None

    def measure(self, key: str, samples: Sequence[Sample], repeats: int, device: str) -> Iterator[Event]:
        """Measure the costs of a cell that has answered."""
        if key in self.failed:
            return
        try:
            costs = self.evaluator.measure(self.cells[key], samples, repeats)
        except Exception as error:  # whatever a method does wrong, the other cells go on
            yield self._fail(key, error)
        else:
            yield Measured(key, costs, device)

    def _fail(self, key: str, error: Exception) -> Failed:
        self.failed.add(key)
        return Failed(key, "".join(traceback.format_exception(error)))
