"""Prune the patches of a timm ViT between its blocks, in a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import PRE_LLM, Stage, tower
from tokenprune.core.steps import Step
from tokenprune.engine.attach.interception import Opening
from tokenprune.engine.attach.wrapped import unwrapped
from tokenprune.engine.providers.base import refusal
from tokenprune.engine.tower.block import VitBlock, VitTrace
from tokenprune.engine.tower.signals import absent, check_layers
from tokenprune.pruners.base import Pruner, create_pruner
from tokenprune.towers.timm_sizes import vit_spec
from tokenprune.towers.timm_tower import timm_tower

__all__ = ["VitTrace", "prune_vit"]

ENTRIES = ("forward", "forward_features", "forward_intermediates", "get_intermediate_layers")


@contextmanager
def prune_vit(
    model: Any,
    pruner: str | Pruner,
    *,
    layer: int | Sequence[int] | None = None,
    keep_tokens: int | None = None,
    keep_ratio: float | None = None,
    average_tokens: float | None = None,
    flops: float | None = None,
    **options: Any,
) -> Iterator[VitTrace]:
    """Prune the patches of what ``model(x)`` is given in this block.

    A pruner sees the hidden states of the patches at the input of a block of the model, and, if it asks for them, the
    keys, the CLS attention and the states of the block before, or of an earlier one that it names. Gradients flow
    through the patches that stay. Blocks nest, and the innermost applies alone; which calls belong to a block is as in
    ``prune``. ``model.forward_intermediates`` gives the patches that are left, which are no grid: ask it for
    ``output_fmt="NLC"``.

    Args:
        model: a ``VisionTransformer`` (ViT, DeiT, DINOv2, SigLIP, ...) or ``Eva`` (EVA-02, DINOv3, ...) of timm.
        pruner: a registered name, or a pruner; one that selects before the LLM where there is one, or one whose stages
            are all inside a vision tower.
        layer: block of the model (0-based) at whose input patches leave; or several, ascending, each of which leaves
            the same share of what arrives at it. None for a pruner that says itself where in a tower patches leave, and
            how many.
        keep_tokens: patches of an image that are left after the last of them; or
        keep_ratio: which share of all, in (0, 1]; or
        average_tokens: patches in a block, mean over the blocks; or
        flops: most FLOPs of the blocks for one image, prefix tokens included.
        **options: of the pruner, if it is given by name.

    Yields:
        The trace.

    Raises:
        TokenPruneError: if model, pruner, layer and budget are not possible together.
    """
    if isinstance(pruner, Pruner) and options:
        raise ConfigError(f"the options {sorted(options)} go with a pruner's name, but the pruner is made already")
    model = unwrapped(model)
    spec = vit_spec(model)
    chosen = pruner if isinstance(pruner, Pruner) else create_pruner(pruner, **options)
    stages, own = _stages(chosen, layer, spec)
    _check_pruner(model, chosen, spec, own=own)
    prefix = 0 if flops is None else model.num_prefix_tokens
    budget = Budget(keep_tokens, keep_ratio, average_tokens, flops, text_tokens=prefix)
    block = VitBlock(model, spec, chosen, stages, budget, own)
    for step in block.steps:
        check_layers(step, timm_tower(model), model)
    if not model.dynamic_img_size:
        block.counts(spec.visual_tokens)
    opening = Opening(model, block, entries=ENTRIES)
    try:
        yield block.trace
    finally:
        opening.close()


def _stages(pruner: Pruner, layer: int | Sequence[int] | None, spec: ModelSpec) -> tuple[tuple[Stage, ...], bool]:
    """Where patches leave, and whether it is the pruner that says so."""
    stages = pruner.stages(spec)
    inside = bool(stages) and all(stage.place == "tower" for stage in stages)
    if not inside:
        layers = _layers(layer, spec.llm.layers, signals=bool(pruner.requires))
        return tuple(tower(at) for at in layers), False
    if layer is not None:
        name = type(pruner).__name__
        raise ConfigError(f"{name} says itself at which blocks of a ViT patches leave; leave layer={layer!r} out")
    return stages, True


def _check_pruner(model: Any, pruner: Pruner, spec: ModelSpec, *, own: bool) -> None:
    """Refuse pruners that need text, or an LLM."""
    kind = timm_tower(model)
    if missing := absent(Step(tower(0), pruner, "original"), kind):
        lacks = "text and CLS token" if model.cls_token is None else "text"
        who = f"{type(model).__name__}, a classifier without {lacks},"
        raise refusal(who, missing, [signal.plain for signal in kind.offers])
    if (
        (not own and pruner.stages(spec) != (PRE_LLM,))
        or pruner.operations(spec) is not None
        or pruner.budget is not None
    ):
        name = type(pruner).__name__
        raise ConfigError(
            f"{name} says itself where or how much to prune in an LLM; between the blocks of a ViT run pruners that "
            "select before the LLM, at the layer and with the budget of prune_vit"
        )


def _layers(layer: int | Sequence[int] | None, depth: int, *, signals: bool) -> tuple[int, ...]:
    asked, first = tuple(layer) if isinstance(layer, Sequence) else (layer,), int(signals)
    layers = tuple(at for at in asked if type(at) is int and first <= at < depth)
    if not layers or layers != asked or any(a >= b for a, b in pairwise(layers)):
        reason = ", as its signals are of the block before" if signals else ""
        raise ConfigError(
            f"layer is {layer!r}; it must be a block from {first} to {depth - 1}{reason}, or several, ascending"
        )
    return layers
