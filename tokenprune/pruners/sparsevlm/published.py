"""From published lists, made for one model and some budgets, to other models and budgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

LAYERS, DEPTH, TOTAL = (2, 6, 15), 32, 576  # tokens and layers of the model that the published counts are for
PUBLISHED = {  # visual tokens that the stages select
    "v1": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "plus": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}


def scaled_layers(layers: Sequence[int], depth: int, target: int) -> tuple[int, ...]:
    """Ascending layers of a model of ``depth`` layers in one of ``target``: rounded, and kept apart.

    They may end up beyond the last layer of a model with hardly more layers than are asked for.
    """
    rounded = (round(layer * target / depth) for layer in layers)
    return tuple(accumulate(rounded, lambda before, layer: max(before + 1, layer)))


def counts_between(lists: Iterable[Sequence[int]], of: int, keep: int, total: int) -> tuple[int, ...]:
    """How many tokens each stage keeps: linear between the lists, below them to no tokens, above them to all.

    Args:
        lists: tokens kept at each stage, of ``of`` tokens; the last numbers differ and are the places on the curve.
        of: tokens that the lists are for.
        keep: tokens kept at the last stage.
        total: tokens before the first stage, ``keep`` or more.

    Returns:
        The counts, none below the next, the last one ``keep``. At a list's own ``of`` and last number, the list.
    """
    ranked = sorted(lists, key=lambda counts: counts[-1])
    curve = pairwise([[0] * len(ranked[0]), *ranked, [of] * len(ranked[0])])
    place = keep * of / max(total, 1)
    below, above = next((a, b) for a, b in curve if place <= b[-1])
    share = (place - below[-1]) / (above[-1] - below[-1])
    counts = [round((a + share * (b - a)) * total / of) for a, b in zip(below, above, strict=True)]
    return tuple(accumulate([keep, *counts[-2::-1]], max))[::-1]
