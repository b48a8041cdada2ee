"""Position ids with several axes (M-RoPE): time, height and width of a visual token, all the same for text.

``generate`` puts the count of the tokens before them, so that they are (4, B, L). Where an image or a frame is whole,
its tokens stand side by side in the prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.inputs import real_tokens, text_positions
from tokenprune.core.errors import ModelError
from tokenprune.core.steps import Step


def mrope_positions(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Position ids (4, B, L) of the unpruned prompt, as the model numbers them; nothing is noted on the model.

    Args:
        model: with ``get_rope_index``.
        inputs: of the model.
    """
    real, index = real_tokens(inputs), model.base_model.get_rope_index
    names = [name for name in inspect.signature(index).parameters if inputs.get(name) is not None]
    axes, _ = index(**{**{name: inputs[name] for name in names}, "attention_mask": real.long()})
    return torch.cat([text_positions(real)[None], axes.to(real.device)])


def all_axes(positions: Tensor, real: Tensor) -> Tensor:
    """Position ids (4, B, L) from any shape that such models take: (1 or B, L), or with three or four axes before.

    Args:
        positions: given by a caller; with one axis, images count like text.
        real: (B, L) bool, False for padding.

    Raises:
        ModelError: if they have another number of axes.
    """
    axes = positions.to(real.device)
    axes = (axes[None] if axes.dim() == 2 else axes).expand(-1, *real.shape)
    if len(axes) == 1:
        axes = axes.expand(3, -1, -1)
    if len(axes) not in (3, 4):
        raise ModelError(f"position_ids have {len(axes)} axes; this model takes one, three or four")
    return axes if len(axes) == 4 else torch.cat([text_positions(real)[None], axes])


def close_gaps(positions: Tensor, placeholder: Tensor, gone: Tensor) -> Tensor:
    """Position ids of a prompt whose images have become smaller.

    Of each image or frame, a row, column or time of which no token is left is not counted any more; what follows moves
    up by what the longer of its sides loses. With one axis this is what closing gaps always was. No paper says how: it
    is inferred from how the model numbers images of any size.

    Args:
        positions: (4, B, L), the first axis counts tokens.
        placeholder: (B, L) bool, where visual tokens are.
        gone: (B, L) bool, those that leave.
    """
    closed = positions.clone()
    closed[0] -= gone.long().cumsum(1)
    for row, visual in enumerate(placeholder):
        for start, end in _runs(visual):
            leaves = gone[row, start:end]
            sides = []
            for axis in (1, 2, 3):
                places = positions[axis, row, start:end]
                kept, whole = set(places[~leaves].tolist()), set(places.tolist())
                lost = places.new_tensor(sorted(whole - kept))
                closed[axis, row, start:end] -= torch.searchsorted(lost, places)
                sides.append((len(whole), len(kept)))
            before, after = (max(side) for side in zip(*sides[1:], strict=True))
            closed[1:, row, end:] -= before - after
    return closed


def _runs(visual: Tensor) -> Iterator[tuple[int, int]]:
    """Start and end of each run of True in (L,)."""
    edges = torch.nn.functional.pad(visual.long(), (1, 1)).diff().nonzero()[:, 0].tolist()
    return zip(edges[::2], edges[1::2], strict=True)


def check_axes(steps: Sequence[Step]) -> None:
    """Raise ModelError if a step closes gaps in the positions inside the LLM."""
    for step in steps:
        if step.stage.inside and step.positions == "repacked":
            raise ModelError(
                "the position ids of this model have several axes, so that gaps cannot be closed inside the LLM "
                f"({step.stage}); give the pruner positions: original"
            )
