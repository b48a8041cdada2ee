"""What a model is made of, where tokens leave it, and which of its work is done at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from tokenprune.errors import ConfigError, SelectionError


@dataclass(frozen=True)
class Stage:
    """Where tokens leave.

    Attributes:
        layer: input of this decoder layer (0-based), or None for before the LLM.
    """

    layer: int | None = None

    def __str__(self) -> str:
        return "pre_llm" if self.layer is None else f"layer={self.layer}"


PRE_LLM = Stage()


def check_stages(stages: Sequence[Stage], layers: int, name: str) -> None:
    """Refuse stages that a model does not have, or whose order is not that of its layers.

    Layer 0 is left to ``PRE_LLM``: what leaves before the first layer leaves before the LLM.

    Args:
        stages: of a pruner.
        layers: of the LLM.
        name: of the pruner, for the message.

    Raises:
        ConfigError: says which.
    """
    for stage in stages:
        if stage.layer is not None and not 1 <= stage.layer < layers:
            raise ConfigError(f"{name} prunes at {stage}, but the LLM has {layers} layers; allowed: 1 to {layers - 1}")
    for first, second in pairwise(stages):
        if (first.layer or 0) >= (second.layer or 0):
            raise ConfigError(
                f"{name} prunes at {first} and then at {second}; each stage must come after the one before"
            )


@dataclass(frozen=True)
class TransformerSpec:
    """Sizes of one transformer.

    Attributes:
        layers, width, mlp_width, heads, kv_heads, head_dim: as in the model's config.
        mlp_matrices: matrices of an MLP: 2, or 3 if it is gated.
        window: tokens that a query sees in the layers ``windowed``, itself included; 0 if there are none.
        windowed: layers (0-based) with a sliding window. A prefill is computed in full and masked; the cache is short.
    """

    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_matrices: int
    window: int = 0
    windowed: tuple[int, ...] = ()

    def cached(self, layer: int, tokens: int) -> int:
        """Tokens whose keys and values a layer (0-based) still holds after so many gave them."""
        return min(tokens, self.window - 1) if layer in self.windowed else tokens

    def layer_flops(self, sources: int, receivers: int, mlp: int) -> int:
        """FLOPs of a layer as the hardware multiplies: two per multiply-add, matrix products only, GQA-aware.

        They are those of ``torch.utils.flop_counter.FlopCounterMode``. Attention is charged as the full square of
        queries and keys, as its formula for SDPA does, whether or not a kernel skips the masked half.

        Args:
            sources: tokens that give keys and values.
            receivers: tokens that ask and receive.
            mlp: tokens that pass the MLP.
        """
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        projections = sources * self.width * 2 * keys + receivers * self.width * 2 * queries
        attention = 2 * queries * receivers * sources
        return 2 * (projections + attention + mlp * self.mlp_matrices * self.width * self.mlp_width)


@dataclass(frozen=True)
class ModelSpec:
    """What the cost of a model depends on, read from its config alone.

    Attributes:
        llm: the decoder.
        vision: the vision tower as far as it is used, or None if unknown.
        vocabulary: rows of the LM head.
        visual_tokens: visual tokens of one image before pruning.
        vision_tokens: tokens inside the vision tower for one image (patches and CLS), of all its tiles.
        vision_tiles: equal parts of an image that the tower sees apart, the whole image among them if it is one.
        vision_prefix: tokens of a tile that no patch makes, such as CLS.
        vision_window: tokens of a window, which divides those of a tile; 0 if the tower has none.
        vision_window_layers: layers of the tower whose attention stays inside windows.
        vision_head: whether one more query and MLP pool each tile (SigLIP's head), which runs though nothing reads it.
        patch_inputs: numbers in one patch (channels * patch height * patch width, * frames if it spans several).
        projector: widths of the projector's layers from the tower's to the LLM's.
        projectors: of these sizes, each of which all visual tokens pass; more than one if several layers are read.
    """

    llm: TransformerSpec
    vocabulary: int
    visual_tokens: int
    vision: TransformerSpec | None = None
    vision_tokens: int = 0
    vision_tiles: int = 1
    vision_prefix: int = 0
    vision_window: int = 0
    vision_window_layers: int = 0
    vision_head: bool = False
    patch_inputs: int = 0
    projector: tuple[int, ...] = ()
    projectors: int = 1


class Operation(IntEnum):
    """What a decoder layer does with a token."""

    ATTENTION_SOURCE = 0  # it gives keys and values
    ATTENTION_RECEIVER = 1  # it asks (query) and receives (output projection)
    MLP = 2


@dataclass(frozen=True, eq=False)
class OperationPlan:
    """Which work is done for which visual tokens; text always takes part in everything.

    Token pruning is the special case in which a group takes part in all operations up to a layer and in none after it.

    Attributes:
        active: (layers, 3, groups) bool over ``Operation``.
        group_sizes: visual tokens in each group.
    """

    active: Tensor
    group_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        expected = (3, len(self.group_sizes))
        if self.active.dtype != torch.bool or self.active.dim() != 3 or tuple(self.active.shape[1:]) != expected:
            raise SelectionError(
                f"active must be a bool (layers, 3, {expected[1]}) tensor, got {tuple(self.active.shape)}"
            )

    @classmethod
    def drop_at(cls, spec: ModelSpec, stages: Sequence[Stage], alive: Sequence[int], total: int) -> OperationPlan:
        """Token pruning.

        Args:
            spec: of the model.
            stages: where tokens leave, in the order of the layers.
            alive: visual tokens that go on from each stage.
            total: visual tokens before the first.
        """
        counts = [total, *alive]
        active = torch.ones(spec.llm.layers, 3, len(counts), dtype=torch.bool, device="cpu")
        for group, stage in enumerate(stages):
            active[stage.layer or 0 :, :, group] = False
        return cls(active, (*(a - b for a, b in pairwise(counts)), counts[-1]))

    @property
    def mean_tokens(self) -> float:
        """Visual tokens that give keys and values, mean over the layers: the average budget of the literature."""
        layers = len(self.active)
        return sum(self.tokens(layer, Operation.ATTENTION_SOURCE) for layer in range(layers)) / layers

    def prefill_flops(self, llm: TransformerSpec, text_tokens: int) -> int:
        """FLOPs of the decoder layers for one prompt, without the LM head; see ``TransformerSpec.layer_flops``.

        Args:
            llm: with as many layers.
            text_tokens: all other tokens of the prompt; they take part in everything.
        """
        return sum(
            llm.layer_flops(*(text_tokens + self.tokens(layer, operation) for operation in Operation))
            for layer in range(llm.layers)
        )

    def tokens(self, layer: int, operation: Operation) -> int:
        """How many visual tokens take part in an operation of a layer (0-based)."""
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
        """How many of so many tokens are in each group."""
        ends = [round(tokens * share) for share in accumulate(self.shares)]
        return [end - start for start, end in pairwise([0, *ends])]

    @property
    def trivial(self) -> bool:
        """Whether everything runs."""
        return bool(self.active.all())
