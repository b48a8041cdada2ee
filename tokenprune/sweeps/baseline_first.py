"""The unpruned cells of a sweep before all others, so that a wrong set-up shows before it has cost much."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from tokenprune.sweeps.launch.base import Batch, Job


def baseline_first(jobs: Sequence[Job], unpruned: Collection[str]) -> list[Job]:
    """Split jobs in two: what unpruned cells have to do, for all tasks of a model, and then what the others have.

    Pictures are encoded once for the unpruned cells and once more for all others.

    Args:
        jobs: one for each model and task; those of one model follow one another.
        unpruned: keys of cells that prune nothing.
    """
    ordered: list[Job] = []
    for model in dict.fromkeys(job.model for job in jobs):
        parts = [job for job in jobs if job.model == model]
        for first in (True, False):
            ordered += [part for job in parts if (part := _part(job, unpruned, first)).cells]
    return ordered


def _part(job: Job, unpruned: Collection[str], first: bool) -> Job:
    """The part of a job that is of unpruned cells, or of all others."""
    kept = [key for key in job.cells if (key in unpruned) == first]
    batches = [Batch(batch.samples, tuple(key for key in batch.cells if key in kept)) for batch in job.batches]
    return dataclasses.replace(
        job,
        cells={key: job.cells[key] for key in kept},
        batches=tuple(batch for batch in batches if batch.cells),
        measured=tuple(key for key in job.measured if key in kept),
        origin=dataclasses.replace(job.origin, code={key: job.origin.code[key] for key in kept}),
    )
