"""FLOPs in closed form, as the hardware multiplies; see ``TransformerSpec.layer_flops`` for what is charged.

They equal what ``torch.utils.flop_counter.FlopCounterMode`` counts of a real forward, see ``counter``: matrix products,
convolutions and attention, which is charged as the full square of queries and keys, as models compute it under sdpa and
eager, whatever a causal mask or a sliding window hides. What papers charge instead is in ``conventions``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tokenprune.core.plan import OperationPlan
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage

Left = Sequence[tuple[Stage, int]]


def llm_prefill_flops(spec: ModelSpec, plan: OperationPlan, text_tokens: int) -> int:
    """FLOPs of the decoder layers for one prompt with one set of visual tokens, without the LM head.

    Args:
        spec: sizes of the model.
        plan: which visual tokens take part in what.
        text_tokens: all other tokens of the prompt; they take part in everything. With 0 the result is the visual-only
            figure that CDPruner's paper prints.

    Returns:
        FLOPs.
    """
    return plan.prefill_flops(spec.llm, text_tokens)


def llm_decode_flops(spec: ModelSpec, plan: OperationPlan, text_tokens: int, generated: int = 0) -> int:
    """FLOPs of the decoder layers for one token that is generated, without the LM head.

    Args:
        spec: of the model.
        plan: of the prefill, with what the caches hold then.
        text_tokens: all other tokens of the prompt.
        generated: tokens that were decoded before, in which everything runs; 0 is the first forward after the prefill.
    """
    llm = spec.llm
    before = (text_tokens + plan.cached_tokens(layer) for layer in range(llm.layers))
    cached = sum(llm.cached(layer, tokens + generated) for layer, tokens in enumerate(before))
    attention = 4 * llm.heads * llm.head_dim * cached  # of one query: scores, and their sum of values
    return llm.layers * llm.layer_flops(1, 1, 1) + attention


def lm_head_flops(spec: ModelSpec) -> int:
    """FLOPs of the LM head on one position: prefill needs its logits at the last token alone."""
    return 2 * spec.llm.width * spec.vocabulary


def vision_flops(spec: ModelSpec, left: Left = ()) -> int:
    """FLOPs of the vision tower for one image: patch embedding and the layers that are used; 0 if it is unknown.

    Args:
        spec: of the model.
        left: visual tokens of the image that are left behind each stage; those inside the tower are of one tile,
            whose patches are the visual tokens.
    """
    tower = spec.vision
    if tower is None:
        return 0
    tiles, inside = spec.vision_tiles, spec.vision_window_layers
    tile = spec.vision_tokens // tiles
    sizes = _tower_tokens(spec, [(tile, tile)] * (tower.layers - inside), left)
    embedding = 2 * (spec.vision_tokens - tiles * spec.vision_prefix) * spec.patch_inputs * tower.width
    head = tiles * spec.vision_head * tower.layer_flops(sources=sizes[-1][1] if sizes else tile, receivers=1, mlp=1)
    window = spec.vision_window or tile
    windowed = spec.vision_tokens // window * tower.layer_flops(window, window, window)
    whole = sum(tiles * tower.layer_flops(attended, attended, mlp) for attended, mlp in sizes)
    return embedding + whole + inside * windowed + head


def _tower_tokens(spec: ModelSpec, sizes: list[tuple[int, int]], left: Left) -> list[tuple[int, int]]:
    """Tokens of a tile in the attention and the MLP of each layer, prefix included, from those before any stage."""
    for stage, tokens in left:
        if stage.place == "tower" and stage.layer is not None:
            behind, number = len(sizes) - stage.layer, spec.vision_prefix + tokens
            first = sizes[stage.layer][0] if stage.after else number
            sizes = [*sizes[: stage.layer], (first, number), *[(number, number)] * (behind - 1)]
    return sizes


def projector_flops(spec: ModelSpec, left: Left = ()) -> int:
    """FLOPs of the projector for one image, of whose visual tokens those that come out of the tower pass it.

    Args:
        spec: of the model.
        left: visual tokens of the image that are left behind each stage.
    """
    tokens = min([spec.visual_tokens, *(tokens for stage, tokens in left if stage.place == "tower")])
    return 2 * spec.projectors * tokens * sum(a * b for a, b in pairwise(spec.projector))
