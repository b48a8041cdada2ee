"""What a tracker is told of finished cells: their records, some answers, and pictures of what was kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.core.turn import Turn, only_picture
from tokenprune.sweeps.launch.base import Line
from tokenprune.sweeps.overlay import as_seen, kept_patches
from tokenprune.sweeps.progress import State
from tokenprune.sweeps.store import RunFolder, RunRecord
from tokenprune.sweeps.tracking import Finished, Tracked


def report_cells(states: Sequence[State], folder: RunFolder, session: Tracked) -> None:
    """Report finished cells to the session of a tracker.

    Args:
        states: of the cells.
        folder: where their answers are.
        session: which also says how many answers of each it wants.
    """
    answers: dict[str, list[Line]] = {state.keyed.key: [] for state in states}
    for line in folder.samples if session.answers else ():
        told = answers.get(line["cell"])
        if told is not None and len(told) < session.answers:
            told.append(line)
    for state in states:
        if state.record:
            model = state.keyed.asked["model"]
            turns = {sample.id: as_seen(sample, model).turn for sample in state.group.samples}
            session.cell(_finished(str(state.keyed.cell), state.record, answers[state.keyed.key], turns))


def _finished(label: str, record: RunRecord, answers: Sequence[Line], turns: Mapping[str, Turn]) -> Finished:
    named = (Path(value) for value in record.pruner.values() if isinstance(value, str))
    return Finished(
        id=record.cell,
        label=label,
        config={**record.config, "provenance": dataclasses.asdict(record.provenance)},
        metrics=record.metrics,
        answers=answers,
        picture=partial(_picture, turns),
        files=[path for path in named if path.is_file()],  # such as a fitted policy
        error=record.error,
    )


def _picture(turns: Mapping[str, Turn], line: Mapping[str, Any]) -> NDArray[np.uint8] | None:
    image = only_picture(turns[line["sample"]]) if line["grid"] else None
    if image is None:
        return None
    return kept_patches(image, [stage["kept"] for stage in line["stages"]], tuple(line["grid"]))
