"""Accuracy on the questions that need detail: those that the unpruned model fails on pictures with less of it.

The split of a benchmark by a coarse picture is VTC-Bench's (https://arxiv.org/abs/2510.07143). Here a sweep has it that
varies the task's ``image_scale``.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tokenprune.report.comparison import Outcomes
from tokenprune.report.document import Block, Heading, Paragraph, Table
from tokenprune.report.numbers import percent
from tokenprune.report.rows import Row, Section

SCALE = "image_scale"  # of a task: what is left of a picture's width and height


def hard_questions(section: Section, sections: Sequence[Section], found: Outcomes) -> list[Block]:
    """Accuracy on hard questions and on the others; nothing if no section is the same but for a coarser picture.

    Args:
        section: whose rows are shown.
        sections: of the report.
        found: outcomes of their cells.
    """
    coarse = [other for other in sections if _same_but_coarser(other, section)]
    coarse.sort(key=lambda other: -_scale(other))
    failed = [(_scale(other), _failed(other, found)) for other in coarse]
    failed = [(scale, questions) for scale, questions in failed if questions]
    if not failed:
        return []
    header = ["pruner", "visual tokens", *(f"{len(questions)} at {scale:g}" for scale, questions in failed)]
    rows = []
    for row in section.done:
        splits = [_split(row, questions, found) for _, questions in failed]
        rows.append([row.label, f"{row.number('average_tokens'):.4g}", *splits])
    said = (
        "Hard are the questions that the model without pruning fails on pictures shrunk to a part of their width and "
        "enlarged again; how many, and to which part, is at the head of each column. A cell is the accuracy on these / "
        "on the others."
    )
    table = Table(f"Accuracy in % on hard / other questions, {section.title}", header, rows)
    return [Heading("Hard questions"), Paragraph(said), table]


def _task(section: Section) -> Mapping[str, Any]:
    return section.rows[0].any.config.get("task") or {}


def _scale(section: Section) -> float:
    return float(_task(section).get(SCALE, 1.0))


def _same_but_coarser(other: Section, section: Section) -> bool:
    def rest(of: Section) -> str:
        config = of.rows[0].any.config
        task = {key: value for key, value in _task(of).items() if key != SCALE}
        return json.dumps([config.get("model"), task], sort_keys=True)

    return rest(other) == rest(section) and _scale(other) < _scale(section)


def _failed(section: Section, found: Outcomes) -> set[str]:
    """Questions that were answered wrongly without pruning."""
    plain = [row for row in section.done if row.label == "none"]
    return {sample for row in plain for sample, right in found[row.any.cell].items() if not right}


def _split(row: Row, questions: Collection[str], found: Outcomes) -> str:
    """Accuracy in % on hard / other questions, means over the questions and seeds."""
    right: dict[bool, list[float]] = {True: [], False: []}
    for record in row.records:
        for sample, value in found[record.cell].items():
            right[sample in questions].append(value)
    return " / ".join(percent(statistics.fmean(values) if values else None) for values in right.values())
