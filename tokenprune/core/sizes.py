"""Sizes of a model, by which its costs are counted."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.core.stages import PRE_LLM, Stage


@dataclass(frozen=True)
class TransformerSpec:
    """Sizes of a transformer: a decoder or a vision tower.

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
        vision_read: layers of the tower up to the last that the projector reads; None for all of them.
        vision_window: tokens of a window, which divides those of a tile; 0 if the tower has none.
        vision_window_layers: layers of the tower whose attention stays inside windows.
        vision_head: whether one more query and MLP pool each tile (SigLIP's head), which runs though nothing reads it.
        patch_inputs: numbers in one patch (channels * patch height * patch width, * frames if it spans several).
        projector: widths of the projector's layers from the tower's to the LLM's.
        position_axes: of the position ids that images have: 1, or 3 under M-RoPE.
        early_stage: where methods that merge before the projector do so: there, or before the LLM if a family has no
            such stage.
        projectors: of these sizes, each of which all visual tokens pass; more than one if several layers are read.
    """

    llm: TransformerSpec
    vocabulary: int
    visual_tokens: int
    vision: TransformerSpec | None = None
    vision_tokens: int = 0
    vision_tiles: int = 1
    vision_prefix: int = 0
    vision_read: int | None = None
    vision_window: int = 0
    vision_window_layers: int = 0
    vision_head: bool = False
    patch_inputs: int = 0
    projector: tuple[int, ...] = ()
    projectors: int = 1
    position_axes: int = 1
    early_stage: Stage = PRE_LLM

    @property
    def tower_layers(self) -> int:
        """Layers whose output reaches the projector; of a classifier, which is a tower alone, all of its blocks."""
        return (self.vision or self.llm).layers if self.vision_read is None else self.vision_read
