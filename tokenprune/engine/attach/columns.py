"""Where the caller's columns are in a prompt that lost some."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenprune.core.errors import ModelError


def columns_of(wanted: Any, column: Tensor, length: int) -> Tensor:
    """Columns, long and of the shape asked for, at which the caller's columns are in a prompt that lost some.

    Args:
        wanted: which, as an index of a tensor's axis: numbers, a mask or a slice.
        column: (B, L') long, the caller's columns that stay; -1 for padding.
        length: L, columns of the caller.

    Raises:
        ModelError: if one left, or its place is not the same in all rows.
    """
    index = wanted if isinstance(wanted, slice | Tensor) else torch.as_tensor(wanted)
    index = index.to(column.device) if isinstance(index, Tensor) else index
    asked = torch.arange(length, device=column.device)[index]
    shape, asked = asked.shape, asked.flatten()
    found = column[:, None] == asked[:, None]  # (B, n, L')
    if not bool(found.any(-1).all()):
        gone = asked[~found.any(-1).all(0)].tolist()
        raise ModelError(
            f"logits_to_keep asks for columns {gone}, of visual tokens that were dropped or of padding; ask for others"
        )
    places = found.long().argmax(-1)
    if bool((places != places[:1]).any()):
        raise ModelError("logits_to_keep asks for columns that are at other places in each row of the pruned prompts")
    return places[0].view(shape)
