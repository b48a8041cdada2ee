"""Vision towers in which a picture is a row of tokens: those that no patch makes, such as CLS, then its patches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from einops import rearrange, reduce
from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import Signal, TowerHeadMean, TowerStates
from tokenprune.towers.attention import attention_to, logits_to, mean_attention
from tokenprune.towers.base import Tower, TowerOutput, attending


@dataclass(frozen=True)
class RowTower(Tower):
    """A vision tower whose layers take (I, L, V): for each picture its prefix tokens, then its patches."""

    @abstractmethod
    def door(self, model: Any) -> Any:
        """The module with whose call a forward of the tower begins; it is given the pictures, (I, 3, h, w)."""

    @abstractmethod
    def layers(self, model: Any) -> Sequence[Any]:
        """The layers of a model's tower, in their order."""

    def check_stage(self, layer: int, config: Any) -> None:
        """Raise ModelError unless patches can leave at the input of a layer (0-based), and the projector sees it.

        What leaves between attention and MLP of a layer needs the same.
        """
        reads, where = self.reads(config), f"tower({layer})"
        if len(reads) > 1:
            raise ModelError(
                f"{where}: the projector reads several layers of the vision tower, {list(reads)}, which would have "
                "unlike numbers of patches; choose before the projector or the LLM"
            )
        if self.first(config) != self.prefix(config):
            raise ModelError(
                f"{where}: the projector reads other tokens of the vision tower than its patches, so that these cannot "
                "leave inside it; choose before the projector or the LLM"
            )
        if not 0 <= layer <= reads[0]:
            raise ModelError(
                f"{where}: the projector reads what layer {reads[0]} of the vision tower gives; "
                f"allowed: 0 to {reads[0]}"
            )

    def before_mlp(self, layer: Any) -> Any:
        """The module of a layer that is first given the hidden states between attention and MLP."""
        return layer.layer_norm2

    def mlp_end(self, layer: Any) -> Any:
        """The module of a layer whose output is added to the hidden states between attention and MLP."""
        return layer.mlp

    def check_bias(self, model: Any) -> None:
        """Raise ModelError if the kernel of a model's tower takes no bias on keys."""
        kernel = self.attention_of(self.layers(model)[0]).config._attn_implementation
        if kernel not in ("sdpa", "eager"):
            raise ModelError(f"a bias on keys inside the vision tower needs sdpa or eager attention, not {kernel}")

    def aligned(
        self, arguments: Mapping[str, Any], kept: Tensor | None, bias: Tensor | None = None
    ) -> Mapping[str, Any]:
        """The keyword arguments of a layer, besides its hidden states, for the patches that are left.

        Args:
            arguments: for all patches.
            kept: (I, n) long, which are left; None while all are.
            bias: (I, L), what is added to the logits of the tokens of a picture as keys; None: nothing.

        Raises:
            ModelError: if an argument is of all patches and cannot be cut, or there is no place for a bias.
        """
        if bias is None:
            return arguments
        if arguments.get("attention_mask") is not None:
            raise ModelError("the vision tower has a mask of its own, so its keys can have no bias")
        return {**arguments, "attention_mask": bias[:, None, None]}

    def prefix(self, config: Any) -> int:
        """How many tokens of a picture no patch makes: CLS, registers; they come first."""
        return 0

    def first(self, config: Any) -> int:
        """Which of a picture's tokens is the first that the projector reads."""
        return self.prefix(config)

    def attention_of(self, layer: Any) -> Any:
        """The attention module of a layer."""
        return layer.self_attn

    def entering(self, layer: Any, hidden: Tensor) -> Tensor:
        """What the attention of a layer is given, from the layer's input (I, L, V)."""
        normed: Tensor = layer.layer_norm1(hidden)
        return normed

    def key(self, attention: Any, x: Tensor) -> Tensor:
        """Keys (I, L, C), heads side by side, of what an attention module is given."""
        keys: Tensor = attention.k_proj(x)
        return keys

    def query(self, attention: Any, x: Tensor) -> Tensor:
        """Queries (I, Q, C), heads side by side, of what an attention module is given."""
        queries: Tensor = attention.q_proj(x)
        return queries

    def states(self, signal: Signal, seen: TowerOutput) -> Tensor:
        config = seen.config
        return seen.states[self.layer(signal, config) + 1][:, self.first(config) :]

    def keys(self, signal: Signal, seen: TowerOutput) -> Tensor:
        attention, x = self._attending(signal, seen)
        return self.key(attention, x)[:, self.first(seen.config) :]

    def head_mean(self, signal: Signal, seen: TowerOutput) -> Tensor:
        attention, x = self._attending(signal, seen)
        of_values = isinstance(signal, TowerHeadMean) and signal.of == "values"
        found = self.value(attention, x)[:, self.first(seen.config) :] if of_values else self.keys(signal, seen)
        return reduce(found, "i n (h d) -> i n d", "mean", d=self.head_dim(attention))

    def value(self, attention: Any, x: Tensor) -> Tensor:
        """Values (I, L, C), heads side by side, of what an attention module is given."""
        values: Tensor = attention.v_proj(x)
        return values

    def value_attention(self, signal: Signal, seen: TowerOutput) -> Tensor:
        attention, x = self._attending(signal, seen)
        values = self.value(attention, x)
        key, query = (
            rearrange(part, "i l (h d) -> i l h d", h=attention.num_heads) for part in (values, values[:, :1])
        )
        return mean_attention(key, query, 1.0)[:, self.first(seen.config) :]

    def head_dim(self, attention: Any) -> int:
        """Numbers in one head of an attention module."""
        return int(attention.head_dim)

    def attention(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Attention that the patches that the projector reads get, a part of a softmax over all tokens of a picture.

        Raises:
            ModelError: if CLS is to ask, and the tower has none.
        """
        config, (attention, x) = seen.config, self._attending(signal, seen)
        number, by_cls = self.prefix(config), getattr(signal, "query", None) == "cls"
        if by_cls and not number:
            raise ModelError(
                f"the vision tower {config.vision_config.model_type!r} has no CLS token whose attention could be read; "
                "received_attention stands in for cls_attention there"
            )
        asking = x[:, :1] if by_cls else x[:, number:]  # CLS is none of the patches
        found = attention_to(self.key(attention, x), self.query(attention, asking), attention)
        return found[:, self.first(config) :]

    def logits(self, signal: Signal, seen: TowerOutput) -> Tensor:
        attention, x = self._attending(signal, seen)
        found = logits_to(self.key(attention, x), self.query(attention, x[:, :1]), attention)
        return found[:, self.first(seen.config) :]

    def _attending(self, signal: Signal, seen: TowerOutput) -> tuple[Any, Tensor]:
        """The attention module of the layer that a signal is of, and what it was given (I, L, V)."""
        number = attending(self.layer(signal, seen.config))
        layer = self.layers(seen.model)[number]
        return self.attention_of(layer), self.entering(layer, seen.states[number])


@dataclass(frozen=True)
class NormedTower(RowTower):
    """A tower whose projector reads the output of its last layer, behind the tower's last norm."""

    normed: bool = True

    def reads(self, config: Any) -> tuple[int, ...]:
        """The last layer."""
        return (self.depth(config) - 1,)

    def states(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Hidden states behind a layer; of the one that is read, behind the last norm, unless it is named."""
        if signal != TowerStates():
            return super().states(signal, seen)
        states: Tensor = seen.output.last_hidden_state
        return states[:, self.first(seen.config) :]
