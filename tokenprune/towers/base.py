"""What is known of a kind of vision tower: where its layers are, and how signals are made of what they compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from einops import rearrange
from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import (
    TOWER,
    Layer,
    Signal,
    TowerAttention,
    TowerHeadMean,
    TowerKeys,
    TowerLogits,
    TowerStates,
    TowerValueAttention,
)
from tokenprune.towers.attention import layer_index


@dataclass(frozen=True, eq=False)
class TowerOutput:
    """What came of a vision tower.

    Attributes:
        model: that the tower is a part of.
        modality: ``image`` or ``video``.
        output: of the modality's encoder, with the hidden states that are needed.
        inputs: of the model; of a forward that is under way, what else than hidden states each layer was given.
    """

    model: Any
    modality: str
    output: Any
    inputs: Mapping[Any, Any]

    @property
    def config(self) -> Any:
        """The model's config; models of timm have none, and say themselves what a config would."""
        return getattr(self.model, "config", self.model)

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
        """The layer (0-based) that a signal is of; -1 for the embeddings of patches, if the projector reads these.

        Raises:
            ModelError: if it names none, and the projector reads several.
        """
        named: Layer | None = getattr(signal, "layer", None)
        if named is not None:
            return layer_index(named, self.depth(config))
        first, *others = self.reads(config)
        if others:
            several = f"the projector reads several layers of the vision tower, {[first, *others]}"
            raise ModelError(f"{several}, so {signal.plain} could be any of theirs")
        return first

    @abstractmethod
    def reads(self, config: Any) -> tuple[int, ...]:
        """The layers (0-based) whose outputs the projector reads; -1 stands for the embeddings of patches."""

    def signal(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """A signal of each patch, (I, N, ...) by pictures, or (P, ...) if the tower packs them; see ``merged``.

        Args:
            signal: ``TowerStates`` and ``TowerKeys`` are (..., C), ``TowerHeadMean`` is (..., d), the others
                are (..., H).
            seen: what came of the tower.

        Raises:
            ModelError: if the model does not have it.
        """
        make = {
            TowerStates: self.states,
            TowerKeys: self.keys,
            TowerHeadMean: self.head_mean,
            TowerAttention: self.attention,
            TowerLogits: self.logits,
            TowerValueAttention: self.value_attention,
        }
        return make[type(signal)](signal, seen)

    @abstractmethod
    def states(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Hidden states of patches behind a layer."""

    @abstractmethod
    def keys(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Keys of patches in a layer, heads side by side."""

    def head_mean(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Keys or values of patches in a layer, mean over the heads; of towers that offer them."""
        raise ModelError("this vision tower does not say which part of its keys is of which head")

    def value_attention(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Attention by values that patches get of CLS in a layer; of towers that offer it."""
        raise ModelError("this vision tower does not give its values")

    def logits(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """What the attention of CLS is before the softmax; of towers that offer it."""
        raise ModelError("this vision tower does not give logits of attention")

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
class UnknownVision(Tower):
    """A vision tower of which nothing is known: it gives no signals."""

    offers: frozenset[Signal] = frozenset()

    def reads(self, config: Any) -> tuple[int, ...]:
        return ()

    def states(self, signal: Signal, seen: TowerOutput) -> Tensor:
        raise ModelError("nothing is known of this model's vision tower, so that its states cannot be read")

    keys = attention = states


UNKNOWN = UnknownVision()
