"""What is known of a kind of vision tower: where its layers are, and how signals are made of what they compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from einops import rearrange
from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import TOWER, Signal, TowerAttention, TowerKeys, TowerStates


@dataclass(frozen=True, eq=False)
class TowerOutput:
    """What came of a vision tower.

    Attributes:
        model: that the tower is a part of.
        modality: ``image`` or ``video``.
        output: of the modality's encoder, with the hidden states that are needed.
        inputs: of the model.
    """

    model: Any
    modality: str
    output: Any
    inputs: Mapping[str, Any]

    @property
    def states(self) -> Sequence[Tensor]:
        """The input of each layer, and behind the last its output."""
        found: Sequence[Tensor] = self.output.hidden_states
        return found


@dataclass(frozen=True)
class Tower(ABC):
    """A kind of vision tower. It keeps no state: what a model has is read off the model.

    Attributes:
        offers: signals that it gives, of the layer whose output the projector reads and of any other.
        normed: whether ``TowerStates`` of the layer that is read have been through the tower's last norm.
    """

    offers: frozenset[Signal] = TOWER
    normed: bool = False

    def depth(self, config: Any) -> int:
        """How many layers the tower of a model has, from the model's config."""
        return int(config.vision_config.num_hidden_layers)

    def layer(self, signal: Signal, config: Any) -> int:
        """The layer (0-based) that a signal is of; -1 for the embeddings of patches, if the projector reads these."""
        named: int | None = getattr(signal, "layer", None)
        return self.read(config, signal) if named is None else named % self.depth(config)

    @abstractmethod
    def read(self, config: Any, signal: Signal) -> int:
        """The layer (0-based) whose output the projector reads, or -1.

        Raises:
            ModelError: if a signal could be of several.
        """

    def signal(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """A signal of each patch, (I, N, ...) by pictures, or (P, ...) if the tower packs them; see ``merged``.

        Args:
            signal: ``TowerStates`` and ``TowerKeys`` are (..., C), ``TowerAttention`` is (..., H).
            seen: what came of the tower.

        Raises:
            ModelError: if the model does not have it.
        """
        make = {TowerStates: self.states, TowerKeys: self.keys, TowerAttention: self.attention}
        return make[type(signal)](signal, seen)

    @abstractmethod
    def states(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Hidden states of patches behind a layer."""

    @abstractmethod
    def keys(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Keys of patches in a layer, heads side by side."""

    @abstractmethod
    def attention(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Attention that patches get in a layer."""

    def merged(self, x: Tensor, seen: TowerOutput) -> Tensor:
        """Something that each patch has, as visual tokens have it: (T, ...), here a patch is a token."""
        return rearrange(x, "i n ... -> (i n) ...")


def attending(layer: int) -> int:
    """A layer that attends; ModelError if it is the embeddings that a projector reads."""
    if layer < 0:
        raise ModelError("the projector reads the patch embeddings, so there is no attention layer before it")
    return layer


@dataclass(frozen=True)
class UnknownTower(Tower):
    """A vision tower of which nothing is known: it gives no signals."""

    offers: frozenset[Signal] = frozenset()

    def read(self, config: Any, signal: Signal) -> int:
        raise ModelError(f"nothing is known of this model's vision tower, so that it gives no {signal.plain}")

    def states(self, signal: Signal, seen: TowerOutput) -> Tensor:
        raise ModelError("nothing is known of this model's vision tower, so that its states cannot be read")

    keys = attention = states


UNKNOWN = UnknownTower()
