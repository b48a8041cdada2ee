"""Random visual tokens with every signal that there is."""

import torch
from torch import Tensor

from tokenprune.core.signals import KINDS
from tokenprune.core.tokens import VisualTokens

N, D, C = 36, 16, 8
GRIDS = {N: (6, 6), 1: (1, 1)}
AXES = {"rows": 3, "text": 5, "heads": 2, "tower_heads": 2, "width": D, "channels": D}  # of any other word: C


def shapes() -> dict[str, list[str]]:
    """The axes of every signal behind the rows, by its plain name, in words."""
    return {name: kind.shape.split() for kind in KINDS.values() if kind.shape for name in kind.plain_names}


def signals(batch: int, n: int, generator: torch.Generator, constant: bool = False) -> dict[str, Tensor]:
    """All signals of rows of n visual tokens; constant ones say nothing."""
    found, lengths = {}, {**AXES, "tokens": n, "entered": n}
    masks = {name for kind in KINDS.values() if kind.fill == "mask" for name in kind.plain_names}
    attention = {name for kind in KINDS.values() if kind.fill == "attention" for name in kind.plain_names}
    for name, axes in shapes().items():
        shape = (batch, *(int(axis) if axis.isdigit() else lengths.get(axis, C) for axis in axes))
        numbers = torch.ones(shape) if constant or name in masks else torch.randn(shape, generator=generator)
        found[name] = numbers.bool() if name in masks else numbers.softmax(-1) if name in attention else numbers
    return found


def make(
    batch: int = 3,
    n: int = N,
    features: Tensor | None = None,
    constant: bool = False,
    dtype: torch.dtype = torch.float32,
    valid: Tensor | None = None,
) -> VisualTokens:
    """Visual tokens of random features with all signals, the same on each call."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, n, D, generator=generator) if features is None else features
    grid = GRIDS.get(n) if valid is None else None  # rows of different lengths have none
    return VisualTokens(features.to(dtype), signals(batch, n, generator, constant), grid=grid, valid=valid)
