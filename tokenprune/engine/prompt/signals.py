"""From encoded images and their signals to what a pruner sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenprune.core.precision import on_cpu_unless_said
from tokenprune.core.signals import Signal
from tokenprune.core.tokens import VisualTokens
from tokenprune.engine.providers.encoding import Encoding
from tokenprune.towers.items import Grid


@torch.no_grad()
@on_cpu_unless_said()
def rows_of(
    view: Encoding, signals: Sequence[Signal], units: Sequence[int], features: Tensor | None = None
) -> VisualTokens:
    """What a pruner sees of some units; shorter ones are padded at the end.

    Args:
        view: the images and prompts.
        signals: that it asks for.
        units: which, in the order of the rows.
        features: (T, D) of the tokens; None for those that enter the LLM.
    """
    layout, features = view.encoded.layout, (view.encoded.features if features is None else features).detach()
    lengths = [len(layout.units[unit]) for unit in units]
    index = torch.nn.utils.rnn.pad_sequence([layout.units[unit] for unit in units], batch_first=True)
    valid = torch.arange(index.shape[1], device=index.device) < torch.tensor(lengths, device=index.device)[:, None]
    which = torch.tensor(units, device=index.device)
    rows, grids = layout.rows[which], {layout.grids[unit] for unit in units}

    def take(x: Tensor) -> Tensor:
        return x[index.to(x.device)].to(features.device)

    def of_rows(signal: Signal) -> Tensor:
        x = view.signal(signal)
        if signal.of_prompts:
            return x[rows.to(x.device)].to(features.device)
        return take(x).movedim(1, 1 + signal.shape.split().index("tokens"))

    grid = grids.pop() if len(grids) == 1 else None
    padded = None if len(set(lengths)) == 1 else valid
    found = {str(signal): of_rows(signal) for signal in signals}
    first = units[0]  # rows of one call have equal segments
    segment = None if layout.segments is None else layout.segments[first].to(features.device)
    place = _place(layout.grids[first], lengths[0], features) if layout.places is None else layout.places[first]
    return VisualTokens(
        take(features),
        found,
        grid=grid,
        valid=padded,
        row_ids=lambda: layout.ids[which],
        place=None if place is None or padded is not None else place.to(features.device),
        segment=segment if padded is None else None,
        labels=None if view.encoded.labels is None else take(view.encoded.labels),
        history=view.encoded.history,
    )


def _place(grid: Grid | None, length: int, like: Tensor) -> Tensor | None:
    """Places (N, 3) of the tokens of a row that has one segment."""
    if grid is None:
        return None
    number = torch.arange(length, device=like.device)
    return torch.stack([torch.zeros_like(number), number // grid[1], number % grid[1]], 1)
