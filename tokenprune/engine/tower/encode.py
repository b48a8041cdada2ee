"""The vision tower of an MLLM, run so that patches leave between its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import OfLayer, Signal
from tokenprune.core.steps import Step
from tokenprune.engine.decoder.decoder_checks import HOOKS_RUN_ONCE
from tokenprune.engine.tower.forward import TowerForward, check_unbiased
from tokenprune.engine.tower.hooks import TowerHooks
from tokenprune.engine.tower.left import PatchesLeft
from tokenprune.towers.rows import RowTower


@dataclass(frozen=True)
class TowerPlan:
    """What leaves inside a vision tower.

    Attributes:
        steps: what selects at which layers, ascending.
        counts: patches of each picture that each step keeps.

    Raises:
        ModelError: if a step keeps none.
    """

    steps: tuple[Step, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        for step, count in zip(self.steps, self.counts, strict=True):
            if count < 1:
                raise ModelError(f"{step.stage}: at least one patch must stay inside the vision tower")


def encode_pruned(
    adapter: ModelAdapter, plan: TowerPlan, later: Sequence[Signal], encoder: Callable[[], Any]
) -> tuple[Any, TowerForward]:
    """Run an encoder of images while patches leave inside its tower.

    Args:
        adapter: of a family whose visual tokens are patches.
        plan: what leaves.
        later: signals that are made of the output.
        encoder: runs tower and projector.

    Returns:
        What the encoder returns, with the hidden states that each layer was given, and visual tokens (I, N, D), 0 where
        patches left; and the tower's forward.

    Raises:
        ModelError: if the tower does not run layer by layer.
    """
    tower, model, forwards = adapter.tower, adapter.model, list[TowerForward]()
    assert isinstance(tower, RowTower)  # as the family has the stage
    behind = [step.stage.layer for step in plan.steps if step.stage.after and step.stage.layer is not None]
    _check_checkpointing(tower.layers(model)[0], behind)
    of_tower = [signal for signal in later if isinstance(signal, OfLayer)]

    def begin(pictures: Tensor) -> TowerForward:
        left = PatchesLeft(adapter.spec.visual_tokens)
        forward = TowerForward(tower, model, plan.steps, plan.counts, pictures, adapter.grid(), left, of_tower)
        forwards.append(forward)
        return forward

    with TowerHooks(tower, model, begin, behind).on():
        output = encoder()
    if len(forwards) != 1 or len(forwards[0].left.stages) != len(plan.steps):
        raise ModelError(
            "the layers of the vision tower did not run one by one, as where it is compiled as a whole, so that no "
            "patches could leave inside it; compile its layers, or choose before the LLM"
        )
    (forward,) = forwards
    for signal in later:
        check_unbiased(forward.bias, signal)
    output.pooler_output = forward.left.spread(torch.stack(list(output.pooler_output)))
    if output.hidden_states is not None:
        output.hidden_states = tuple(
            forward.hidden_states.get(layer, states) for layer, states in enumerate(output.hidden_states)
        )
    return output, forward


def _check_checkpointing(layer: Any, behind: Sequence[int]) -> None:
    """Refuse gradient checkpointing where hooks would run again in the backward pass, and do nothing.

    Args:
        layer: of the tower.
        behind: layers behind whose attention patches leave, by hooks within the layers.
    """
    on = getattr(layer, "gradient_checkpointing", False) and layer.training and torch.is_grad_enabled()
    if on and behind:
        raise ModelError(
            "gradient checkpointing runs the layers of the vision tower again in the backward pass, where no patches "
            "leave behind their attention; call model.gradient_checkpointing_disable()"
        )
    if on and not HOOKS_RUN_ONCE:
        raise ModelError(
            "gradient checkpointing runs the layers of the vision tower again in the backward pass, where no patches "
            "leave; call model.gradient_checkpointing_disable(), or take transformers >= 5.23"
        )
