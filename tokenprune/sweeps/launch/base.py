"""What a driver and its workers tell each other.

The driver alone writes the journal. It hands jobs to a launcher, and a launcher hands back a stream of events, in any
order and from however many processes. A job may run twice, in part or as a whole: the driver ignores what it has.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenprune.core.budget import Budget
from tokenprune.core.registry import Registry
from tokenprune.sweeps.config import Part
from tokenprune.sweeps.model_config import ModelConfig

T = TypeVar("T")
Line = dict[str, Any]  # of ``samples.jsonl``: one answer


@dataclass(frozen=True)
class Wanted:
    """A cell that a job is about; picklable, as everything here.

    Attributes:
        key: of the cell.
        label: the pruner's name with its options, for messages.
        pruner: its name and all its options; ``none`` prunes nothing.
        budget: None if nothing is pruned.
    """

    key: str
    label: str
    pruner: Part
    budget: Budget | None


@dataclass(frozen=True)
class Batch:
    """Questions that go through the model together.

    Attributes:
        samples: their ids.
        cells: keys of the cells that answer them; the images are encoded once for all.
    """

    samples: tuple[str, ...]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """What the driver computed the keys from, so that a worker with other weights, data or code refuses.

    Attributes:
        model: hash of the checkpoint.
        data: hash of the questions.
        code: hash of the source, by cell.
    """

    model: str
    data: str
    code: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work on one model and one task.

    Attributes:
        model: which, and how it runs.
        task: the questions.
        max_new_tokens: longest answer, tokens.
        timing_repeats: timed pairs of prefills in ``measured`` cells.
        cells: by key.
        batches: what is to be answered.
        measured: keys of the cells whose costs are to be measured, after the batches.
        origin: of the keys.
        imports: Python files that register what the cells name.
    """

    model: ModelConfig
    task: Part
    max_new_tokens: int
    timing_repeats: int
    cells: Mapping[str, Wanted]
    batches: tuple[Batch, ...]
    measured: tuple[str, ...]
    origin: Origin
    imports: tuple[str, ...] = ()

    def split(self, size: int) -> list[Job]:
        """Jobs of at most ``size`` batches, which can run anywhere in any order; costs are a job of their own."""
        starts = range(0, len(self.batches), size)
        parts = [dataclasses.replace(self, batches=self.batches[i : i + size], measured=()) for i in starts]
        return [*parts, *([dataclasses.replace(self, batches=())] if self.measured else [])]


@dataclass(frozen=True)
class Answered:
    """A cell answered some questions.

    Attributes:
        cell: its key.
        lines: one a question, in the order of the batch.
        seconds: that it took, with the cell's share of what the batch has in common.
    """

    cell: str
    lines: Sequence[Line]
    seconds: float


@dataclass(frozen=True)
class Measured:
    """The costs of a cell.

    Attributes:
        cell: its key.
        costs: metrics by name.
        device: that measured.
    """

    cell: str
    costs: Mapping[str, Any]
    device: str


@dataclass(frozen=True)
class Failed:
    """A cell cannot go on, and does not in this job.

    Attributes:
        cell: its key.
        error: traceback.
    """

    cell: str
    error: str


@dataclass(frozen=True)
class Halved:
    """A cell ran out of memory, and goes on with smaller batches.

    Attributes:
        cell: its key.
        batch_size: questions at a time from now on.
    """

    cell: str
    batch_size: int


Event = Answered | Measured | Failed | Halved


@dataclass(frozen=True, kw_only=True)
class Launcher(ABC):
    """A way to run jobs. Subclasses are frozen dataclasses; their fields are the options."""

    def check(self) -> None:  # noqa: B027 - most need nothing
        """Refuse a launcher that cannot run here, before anything is computed.

        Raises:
            TokenPruneError: if it cannot run here: a package is missing, a cluster is out of reach.
        """

    def load(self, prepare: Callable[[], T]) -> T:
        """Check a sweep and load its data, in the order in which several processes should do so.

        Args:
            prepare: does it in this process.

        Raises:
            TokenPruneError: if something is wrong; in every process of a group then.
        """
        return prepare()

    def assist(self) -> bool:
        """Do another process's jobs until it is done, if this process is there for that; called after the checks.

        Returns:
            Whether it was; nothing is left to do then.

        Raises:
            TokenPruneError: if there is no such process, or it is gone.
        """
        return False

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """Run jobs, each at least once, and yield what happens.

        The driver closes the iterator when it stops early, so what was started ends in a ``finally``. An event must not
        be held back for long: what the driver has seen is on the disk.

        Args:
            jobs: one for each model and task; see ``Job.split``.

        Raises:
            TokenPruneError: if a model cannot be loaded, or a worker has other weights, data or code.
        """


LAUNCHERS: Registry[Launcher] = Registry("launcher", package="tokenprune.sweeps.launch", group="tokenprune.launchers")
