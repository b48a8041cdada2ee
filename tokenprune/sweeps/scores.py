"""How right answers are: what a task says of one, and of all answers of a cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tokenprune.core.errors import DataError
from tokenprune.core.sample import Sample
from tokenprune.tasks.base import MEAN, Task


def score_answer(task: Task, sample: Sample, answer: str) -> dict[str, Any]:
    """What a line of ``samples.jsonl`` says of an answer: ``correct``, its score or None, and ``unparsed``.

    Raises:
        DataError: if the score is outside [0, 1].
    """
    score = task.score(sample, answer)
    if score is not None and not 0 <= score <= 1:  # not a number is neither
        raise DataError(f"{type(task).__name__} scores {answer!r} with {score}; a score is in [0, 1]")
    return {"correct": None if score is None else float(score), "unparsed": bool(task.unparsed(sample, answer))}


def scores_corpus(task: Task) -> bool:
    """Whether a task has metrics of all answers together."""
    return type(task).metrics is not Task.metrics


def reads_answers(task: Task) -> bool:
    """Whether a task can tell answers that it could not read."""
    return type(task).unparsed is not Task.unparsed


def scores_of(
    task: Task, samples: Sequence[Sample], answers: Mapping[str, str], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """What a task's own metrics add to those of a cell: ``score``, ``scores`` and the share ``unparsed``.

    Args:
        task: of the cell.
        samples: of the task.
        answers: by sample, all of them; they are read by tasks alone that have metrics of all answers together.
        metrics: of the cell, with ``accuracy`` and ``unparsed``.

    Raises:
        DataError: if the task does not give its primary metric, or an answer is missing.
    """
    scores: dict[str, float] = {}
    if scores_corpus(task):
        if missing := [sample.id for sample in samples if sample.id not in answers]:
            raise DataError(f"the answer to {missing[0]!r} is missing, which the metrics of all answers need")
        found = task.metrics([(sample, answers[sample.id]) for sample in samples])
        scores = {name: float(value) for name, value in found.items() if math.isfinite(value)}
    known = {MEAN: metrics["accuracy"], **scores}
    if task.primary not in known:
        given = ", ".join(scores) or "none"
        raise DataError(f"{type(task).__name__} gives no metric {task.primary!r}, its primary one; it gives {given}")
    return {
        "score": known[task.primary],
        "scores": scores,
        "unparsed": metrics["unparsed"] if reads_answers(task) else None,
    }


def scoring_of(task: Task) -> dict[str, Any]:
    """How tables show a task's primary metric, for its records: ``title``, ``primary`` and ``scale``."""
    return {"title": task.title, "primary": task.primary, "scale": task.scale}
