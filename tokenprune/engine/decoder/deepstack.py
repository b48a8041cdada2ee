"""Features that an LLM adds to the hidden states of visual tokens behind its first layers (DeepStack).

Paper: DeepStack (Meng et al., 2024), https://arxiv.org/abs/2406.04334
The LLM adds them to the whole prompt's hidden states, so behind a layer that sees less, who prunes must do it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenprune.engine.decoder.alive import Alive

PLACES, LEVELS = "visual_pos_masks", "deepstack_visual_embeds"


@dataclass(frozen=True, eq=False)
class DeepStack:
    """What is added from some layer on.

    Attributes:
        first: behind this layer and later ones.
        places: (B, L) bool, the prompt's visual tokens.
        levels: (T, D) of these for each of the LLM's first layers.
    """

    first: int
    places: Tensor
    levels: Sequence[Tensor]

    @classmethod
    def of(cls, arguments: Mapping[str, Any], first: int) -> DeepStack | None:
        """What DeepStack adds, from the LLM's arguments; None if it adds nothing from the layer ``first`` on."""
        levels = arguments.get(LEVELS)
        return None if levels is None or len(levels) <= first else cls(first, arguments[PLACES], levels)

    @property
    def left(self) -> dict[str, Any]:
        """The LLM's arguments for what it adds itself."""
        return {LEVELS: list(self.levels[: self.first])}

    def add(self, index: int, hidden: Tensor, alive: Alive) -> Tensor:
        """The input of a layer, with what is added behind the layer before it.

        Args:
            index: of the layer.
            hidden: (B, n, D).
            alive: which tokens these are; appended ones get nothing.
        """
        if not self.first < index <= len(self.levels):
            return hidden
        whole = hidden.new_zeros(*self.places.shape, hidden.shape[2])
        whole[self.places.to(hidden.device)] = self.levels[index - 1].to(hidden)
        added: Tensor = alive.gather(whole)
        return hidden + added.masked_fill((alive.visual & (alive.number < 0))[..., None], 0)
