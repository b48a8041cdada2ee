"""What pruning inside a vision tower must equal: dropped patches stay, and nobody sees them from their layer on."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from tokenprune.adapters.registry import adapter_class
from tokenprune.towers.rows import RowTower


@contextmanager
def hidden_patches(model: Any, stages: Any, visual: Sequence[int]) -> Iterator[None]:
    """In this block the vision tower hides the patches that stages dropped, as keys, from the stages' layers on.

    Its layers take hidden states (I, L, V) and an additive mask, as those of CLIP and SigLIP do.

    Args:
        model: the model.
        stages: of a trace; of those inside the tower.
        visual: visual tokens of each batch row, each of which is a patch.
    """
    inside = [stage for stage in stages if stage.stage.place == "tower"]
    # What leaves between attention and MLP is seen by its own layer; an MLP sees no other tokens.
    drops = {stage.stage.layer + (stage.stage.after is not None): stage.keep for stage in inside}
    with ExitStack() as stack:
        if drops:
            tower = adapter_class(model.config.model_type).tower
            assert isinstance(tower, RowTower)  # else there would be no such stages
            for index, layer in enumerate(tower.layers(model)):
                passed = [keep for at, keep in drops.items() if at <= index]
                hide = partial(_hide, tower.prefix(model.config), passed[-1:], visual)
                stack.enter_context(layer.register_forward_pre_hook(hide, with_kwargs=True))
        yield


def _hide(
    prefix: int,
    passed: Sequence[Sequence[Sequence[int]]],
    visual: Sequence[int],
    layer: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Forward pre-hook of a layer of which the tokens in ``passed`` alone are seen; of all, if it is empty."""
    if not passed:
        return None
    seen = _seen(passed[0], visual, args[0].shape[1] - prefix, prefix)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    mask = repeat(mask, "i k -> i 1 q k", q=mask.shape[1])
    return (args[0], mask, *args[2:]), {name: value for name, value in kwargs.items() if name != "attention_mask"}


def _seen(keep: Sequence[Sequence[int]], visual: Sequence[int], patches: int, prefix: int) -> Tensor:
    """Which tokens (I, L) bool of each picture are seen, from the numbers of those that stay in each batch row."""
    rows = [torch.isin(torch.arange(total), torch.tensor(row)) for row, total in zip(keep, visual, strict=True)]
    pictures = rearrange(torch.cat(rows), "(i n) -> i n", n=patches)
    return torch.nn.functional.pad(pictures, (prefix, 0), value=True)
