"""FLOPs of a model's parts, counted while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tokenprune.costs.counter import counter

TOWERS = ("vision_tower", "vision_model", "visual")  # parts of a base model
PROJECTORS = ("multi_modal_projector", "connector", "visual.merger", "visual.deepstack_merger_list")


class Parts:
    """What ran.

    Attributes:
        tower, projector, head: FLOPs; the tower's are without a projector inside it.
        steps: of each forward, FLOPs of the decoder layers, with what selects between them.
        total: of all that ran, in a part or not.
    """

    def __init__(self) -> None:
        self.tower = self.projector = self.head = self.total = 0
        self.steps: list[int] = []

    def rest(self) -> int:
        """What ran in none of them."""
        return self.total - self.tower - self.projector - self.head - sum(self.steps)


@contextlib.contextmanager
def counted(model: Any) -> Iterator[Parts]:
    """Count what runs inside of a model."""
    parts, entered = Parts(), list[int]()
    handles: list[Any] = []

    def watch(module: Any, done: Callable[[int], None]) -> None:
        handles.append(module.register_forward_pre_hook(lambda *_: entered.append(flops.get_total_flops())))
        handles.append(module.register_forward_hook(lambda *_: done(flops.get_total_flops() - entered.pop())))

    def of_tower(count: int) -> None:
        parts.tower += count

    def of_projector(count: int) -> None:
        parts.projector += count

    def of_merger(count: int) -> None:
        of_projector(count)
        of_tower(-count)

    def of_head(count: int) -> None:
        parts.head += count

    for name, module in model.base_model.named_modules():
        if name in TOWERS:
            watch(module, of_tower)
        if name in PROJECTORS:
            for each in module if isinstance(module, torch.nn.ModuleList) else [module]:
                watch(each, of_merger if name.startswith(TOWERS) else of_projector)
    watch(model.get_decoder(), parts.steps.append)
    watch(model.lm_head, of_head)
    try:
        with counter() as flops, torch.no_grad():
            yield parts
        parts.total = flops.get_total_flops()
    finally:
        for handle in handles:
            handle.remove()
