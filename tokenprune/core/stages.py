"""Where tokens leave: in the vision tower, before the projector or the LLM, in a decoder layer, or in its cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from tokenprune.core.errors import ConfigError

Place = Literal["tower", "projector", "pre_llm", "decoder", "cache"]
PLACES: tuple[Place, ...] = get_args(Place)
INSIDE: tuple[Place, ...] = ("decoder", "cache")


@dataclass(frozen=True)
class Stage:
    """A stage: where visual tokens leave.

    ``PRE_LLM``, ``PROJECTOR``, ``tower``, ``decoder`` and ``cache`` make all that there are.

    Attributes:
        place: in which part of the model.
        layer: which layer of it (0-based), or None for a place that has none.
        after: ``attention`` for tokens that a layer of the tower or the LLM attends to and then lets go, before its
            MLP; None for its input.
        earlier_caches: whether what leaves in a decoder layer leaves the caches of the layers before it, too, once they
            are filled; those keep the rotations that they have.
    """

    place: Place = "pre_llm"
    layer: int | None = None
    after: Literal["attention"] | None = None
    earlier_caches: bool = False

    @property
    def inside(self) -> bool:
        """Whether the stage is inside the LLM."""
        return self.place in INSIDE

    @property
    def first_without(self) -> int:
        """The first decoder layer (0-based) whose input lacks the tokens that leave; of a cache, the layer after it."""
        if self.layer is None or not self.inside:
            return 0
        return self.layer + self.behind_attention

    @property
    def behind_attention(self) -> bool:
        """Whether the attention of the stage's own layer has run on the prompt when tokens leave."""
        return self.place == "cache" or self.after is not None

    @property
    def cuts_caches(self) -> bool:
        """Whether caches are cut that are filled already."""
        return self.place == "cache" or self.earlier_caches

    @property
    def order(self) -> tuple[int, int, int]:
        """What stages are sorted by: in the order in which a forward meets them."""
        part = min(PLACES.index(self.place), PLACES.index("decoder"))
        return part, self.layer or 0, 2 if self.place == "cache" else int(self.after is not None)

    def __str__(self) -> str:
        if self.layer is None:
            return self.place
        after = f", after={self.after}" if self.after else ""
        return f"layer={self.layer}{after}" if self.place == "decoder" else f"{self.place}({self.layer}{after})"


PRE_LLM = Stage()
PROJECTOR = Stage("projector")


def tower(layer: int, *, after: Literal["attention"] | None = None) -> Stage:
    """The stage at the input of a layer of the vision tower (0-based), or between its attention and its MLP.

    Args:
        layer: which.
        after: see ``Stage``.
    """
    return Stage("tower", layer, after)


def decoder(layer: int, *, after: Literal["attention"] | None = None, earlier_caches: bool = False) -> Stage:
    """The stage at the input of a decoder layer (0-based), or between its attention and its MLP.

    Args:
        layer: which.
        after: see ``Stage``.
        earlier_caches: see ``Stage``.
    """
    return Stage("decoder", layer, after, earlier_caches)


def cache(layer: int) -> Stage:
    """The stage at which the cache of a decoder layer (0-based) is cut, once the layer has run on the prompt."""
    return Stage("cache", layer)


def check_stages(stages: Sequence[Stage], layers: int, name: str) -> None:
    """Refuse stages that a model does not have, or whose order is not that of its layers.

    The input of layer 0 is left to ``PRE_LLM``: what leaves before the first layer leaves before the LLM.

    Args:
        stages: those of a pruner.
        layers: decoder layers of the LLM.
        name: what to call the pruner in the message.

    Raises:
        ConfigError: if a layer is out of range, or a stage does not come after the one before.
    """
    for stage in stages:
        least = int(stage.place == "decoder" and stage.after is None)
        if stage.inside and not least <= (stage.layer or 0) < layers:
            raise ConfigError(
                f"{name} prunes at {stage}, but the LLM has {layers} layers; allowed: {least} to {layers - 1}"
            )
    for first, second in pairwise(stages):
        if first.order >= second.order:
            raise ConfigError(
                f"{name} prunes at {first} and then at {second}; each stage must come after the one before"
            )
