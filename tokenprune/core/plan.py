"""Which work of a model is done at all: operations of decoder layers, for groups of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from tokenprune.core.errors import SelectionError
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.stages import Stage


class Operation(IntEnum):
    """What a decoder layer does with a token."""

    ATTENTION_SOURCE = 0  # it gives keys and values
    ATTENTION_RECEIVER = 1  # it asks (query) and receives (output projection)
    MLP = 2


@dataclass(frozen=True, eq=False)
class OperationPlan:
    """Which operations a model runs for which visual tokens; text always takes part in everything.

    Token pruning is the special case in which a group takes part in all operations up to a layer and in none after it.

    Attributes:
        active: (layers, 3, groups) bool over ``Operation``.
        group_sizes: visual tokens in each group.
        cached: visual tokens that each layer's cache holds when the prefill is over, as far as it was cut; None for a
            layer whose cache holds all tokens that gave it keys and values. Empty if no cache was cut.

    Raises:
        SelectionError: if ``active`` has another shape or dtype.
    """

    active: Tensor
    group_sizes: tuple[int, ...]
    cached: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        expected = (3, len(self.group_sizes))
        if self.active.dtype != torch.bool or self.active.dim() != 3 or tuple(self.active.shape[1:]) != expected:
            raise SelectionError(
                f"active must be a bool (layers, 3, {expected[1]}) tensor, got {tuple(self.active.shape)}"
            )

    @classmethod
    def drop_at(cls, spec: ModelSpec, stages: Sequence[Stage], alive: Sequence[int], total: int) -> OperationPlan:
        """The plan of token pruning, in which groups of visual tokens leave at stages.

        Args:
            spec: sizes of the model.
            stages: where tokens leave, in the order of the layers.
            alive: live tokens behind each stage, visual ones alone.
            total: visual tokens before the first stage.
        """
        layers = spec.llm.layers
        leaving = [(stage, left) for stage, left in zip(stages, alive, strict=True) if stage.place != "cache"]
        counts = [total, *(left for _, left in leaving)]
        active = torch.ones(layers, 3, len(counts), dtype=torch.bool, device="cpu")
        cached: list[int | None] = [None] * layers
        for group, (stage, left) in enumerate(leaving):
            active[stage.first_without :, :, group] = False
            if stage.inside and stage.after is not None:
                active[stage.layer, Operation.MLP, group] = False
            if stage.earlier_caches:
                cached[1 : stage.first_without] = [left] * (stage.first_without - 1)
        for stage, left in zip(stages, alive, strict=True):
            if stage.place == "cache" and stage.layer:
                cached[stage.layer] = left
        cut = tuple(cached) if any(number is not None for number in cached) else ()
        return cls(active, (*(a - b for a, b in pairwise(counts)), counts[-1]), cut)

    @property
    def mean_tokens(self) -> float:
        """Visual tokens that give keys and values, mean over the layers: the average budget of the literature."""
        layers = len(self.active)
        return sum(self.tokens(layer, Operation.ATTENTION_SOURCE) for layer in range(layers)) / layers

    def prefill_flops(self, llm: TransformerSpec, text_tokens: int) -> int:
        """FLOPs of the decoder layers for one prompt, without the LM head; see ``TransformerSpec.layer_flops``.

        Args:
            llm: sizes of the LLM, with as many layers as the plan.
            text_tokens: all other tokens of the prompt; they take part in everything.
        """
        return sum(
            llm.layer_flops(*(text_tokens + self.tokens(layer, operation) for operation in Operation))
            for layer in range(llm.layers)
        )

    def cached_tokens(self, layer: int) -> int:
        """How many visual tokens the cache of a layer (0-based) holds when the prefill is over."""
        cut = self.cached[layer] if self.cached else None
        return self.tokens(layer, Operation.ATTENTION_SOURCE) if cut is None else cut

    def tokens(self, layer: int, operation: Operation) -> int:
        """How many visual tokens take part in an operation of a layer.

        Args:
            layer: decoder layer (0-based).
            operation: what the layer does with them.
        """
        return sum(
            size for size, on in zip(self.group_sizes, self.active[layer, operation].tolist(), strict=True) if on
        )


@dataclass(frozen=True, eq=False)
class Operations:
    """Which operations a model runs for the visual tokens that entered its LLM, while they are there.

    Attributes:
        active: (layers, 3, groups) bool over ``Operation``.
        shares: of each group, which add up to 1: the first group holds the tokens that were picked first before the
            LLM, and so on.

    Raises:
        SelectionError: if shapes or shares are impossible, or a token gives no keys and values in the first layer: the
            length of its cache is what the prompt's length is read off.
    """

    active: Tensor
    shares: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.active.dtype != torch.bool or tuple(self.active.shape[1:]) != (3, len(self.shares)):
            got = f"{tuple(self.active.shape)} {self.active.dtype}"
            raise SelectionError(f"active must be a bool (layers, 3, {len(self.shares)}) tensor, got {got}")
        if any(share <= 0 for share in self.shares) or abs(sum(self.shares) - 1) > 1e-6:
            raise SelectionError(f"shares must be positive and add up to 1, got {list(self.shares)}")
        if not bool(self.active[0, Operation.ATTENTION_SOURCE].all()):
            raise SelectionError("all visual tokens give keys and values in layer 0; drop them before the LLM instead")

    def sizes(self, tokens: int) -> list[int]:
        """How many of ``tokens`` visual tokens are in each group."""
        ends = [round(tokens * share) for share in accumulate(self.shares)]
        return [end - start for start, end in pairwise([0, *ends])]
