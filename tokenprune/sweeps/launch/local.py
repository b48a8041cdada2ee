"""The launcher that runs jobs in this process, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenprune.sweeps.launch.base import LAUNCHERS, Event, Job, Launcher
from tokenprune.sweeps.launch.worker import Worker


@LAUNCHERS.register("local")
@dataclass(frozen=True, kw_only=True)
class Local(Launcher):
    """This process; a model is loaded once, also for several tasks."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """Run jobs one after another."""
        worker = Worker()
        for job in jobs:
            yield from worker.run(job)
