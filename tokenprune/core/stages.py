"""Where tokens leave: before the projector, before the LLM, or at the input of a decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tokenprune.core.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """A stage: where visual tokens leave.

    Attributes:
        layer: input of this decoder layer (0-based), or None for before the LLM.
        before: what comes next if that is not a decoder layer: the LLM, or the projector that makes visual tokens of
            what the vision tower gives.
    """

    layer: int | None = None
    before: Literal["llm", "projector"] = "llm"

    @property
    def place(self) -> str:
        """Name of the place where tokens leave: ``projector``, ``pre_llm`` or ``decoder``."""
        return "decoder" if self.layer is not None else "projector" if self.before == "projector" else "pre_llm"

    def __str__(self) -> str:
        return self.place if self.layer is None else f"layer={self.layer}"


PRE_LLM = Stage()
PROJECTOR = Stage(before="projector")


def check_stages(stages: Sequence[Stage], layers: int, name: str) -> None:
    """Refuse stages that a model does not have, or whose order is not that of its layers.

    Layer 0 is left to ``PRE_LLM``: what leaves before the first layer leaves before the LLM.

    Args:
        stages: those of a pruner.
        layers: decoder layers of the LLM.
        name: what to call the pruner in the message.

    Raises:
        ConfigError: if a layer is out of range, or a stage does not come after the one before.
    """
    for stage in stages:
        if stage.layer is not None and not 1 <= stage.layer < layers:
            raise ConfigError(f"{name} prunes at {stage}, but the LLM has {layers} layers; allowed: 1 to {layers - 1}")
    for first, second in pairwise(stages):
        if (first.layer or 0) >= (second.layer or 0):
            raise ConfigError(
                f"{name} prunes at {first} and then at {second}; each stage must come after the one before"
            )
