"""Processes that torchrun or accelerate started: data-parallel evaluation."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from tokenprune.core.errors import ConfigError, TokenPruneError
from tokenprune.sweeps.launch.base import LAUNCHERS, Event, Job, Launcher
from tokenprune.sweeps.launch.worker import Worker

T = TypeVar("T")


@LAUNCHERS.register("distributed")
@dataclass(frozen=True, kw_only=True)
class Distributed(Launcher):
    """The processes of ``torchrun -m tokenprune sweep ...`` or ``accelerate launch -m ...``; the first one writes.

    In each round every process takes one batch of questions, of whichever cells; the first one collects the answers.
    ``model.device: cuda`` is the GPU with the number that a process has on its machine.

    Attributes:
        timeout: longest time that a process waits for the others, seconds.
    """

    timeout: float = 3600

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ConfigError(f"launcher 'distributed': timeout must be above 0 seconds, got {self.timeout}")

    def load(self, prepare: Callable[[], T]) -> T:
        """Join the group, and load the data in its first process before the others, which then find caches warm.

        Nothing that loads data can start another group then.

        Raises:
            ConfigError: if this process is not one of a group.
            TokenPruneError: what the first process says is wrong, in all of them.
        """
        try:  # gloo: what is sent are jobs and answers, which are not on a GPU
            dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=self.timeout))
        except ValueError:  # torch misses the variables that such a program sets
            raise ConfigError(
                "launcher 'distributed' needs the processes of a program such as torchrun: "
                "torchrun --nproc-per-node 2 -m tokenprune sweep FILE --launcher distributed"
            ) from None
        try:
            return _first_then_others(prepare)
        except BaseException:
            dist.destroy_process_group()
            raise

    def assist(self) -> bool:
        """Do the share of a process that is not the first one of the group."""
        if dist.get_rank() == 0:
            return False
        try:
            jobs: list[Any] = [None]
            with _report_gone():
                dist.broadcast_object_list(jobs)
            for _ in _rounds(jobs[0]):
                pass
        finally:
            dist.destroy_process_group()
        return True

    def run(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """Run jobs as the first process of the group, while the others are in ``assist``."""
        try:
            with _report_gone():
                dist.broadcast_object_list([jobs := tuple(jobs)])
            yield from _rounds(jobs)
        finally:
            dist.destroy_process_group()


def _first_then_others(prepare: Callable[[], T]) -> T:
    """What ``prepare`` returns in this process; the first process calls it before the others do."""
    wrong: list[TokenPruneError | None] = [None]
    if dist.get_rank() == 0:
        try:
            made = prepare()
        except TokenPruneError as error:
            wrong = [error]
    with _report_gone():
        dist.broadcast_object_list(wrong)
    if wrong[0] is not None:
        raise wrong[0]
    return made if dist.get_rank() == 0 else prepare()


def _rounds(jobs: Sequence[Job]) -> Iterator[Event]:
    """Do the jobs in rounds, in every process; the first one yields what happened in all of them."""
    worker, rank, size = Worker(), dist.get_rank(), dist.get_world_size()
    parts = [_on_own_gpu(part) for job in jobs for part in job.split(1)]
    for start in range(0, len(parts), size):
        done = _run_jobs(worker, parts[start:][rank : rank + 1])
        found: list[Any] | None = [None] * size if rank == 0 else None
        with _report_gone():
            dist.gather_object(done, found)
        for each in found or ():
            if isinstance(each, TokenPruneError):
                raise each
            yield from each


def _on_own_gpu(job: Job) -> Job:
    """A job on the GPU of this process, if it is to be on any GPU."""
    if job.model.device != "cuda":
        return job
    model = dataclasses.replace(job.model, device=f"cuda:{dist.get_node_local_rank()}")
    return dataclasses.replace(job, model=model)


def _run_jobs(worker: Worker, jobs: Sequence[Job]) -> list[Event] | TokenPruneError:
    """Do jobs; the events of them, or a user's mistake, which the first process is to report."""
    try:
        return [event for job in jobs for event in worker.run(job)]
    except TokenPruneError as error:
        return error


@contextmanager
def _report_gone() -> Iterator[None]:
    """Report that a process is gone, which gloo tells by a ``RuntimeError``."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0]
        raise TokenPruneError(f"a process of the group ended or did not answer in time: {said}") from None
