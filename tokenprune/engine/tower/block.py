"""What an open ``tokenprune.prune_vit`` block does with the calls of its model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError, TokenPruneError
from tokenprune.core.plan import OperationPlan
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage, decoder
from tokenprune.core.steps import Step
from tokenprune.engine.tower.forward import TowerForward
from tokenprune.engine.tower.hooks import TowerHooks, active
from tokenprune.engine.tower.left import PatchesLeft
from tokenprune.pruners.base import Pruner
from tokenprune.towers.timm_tower import timm_tower


@dataclass(frozen=True, eq=False)
class VitTrace:
    """What stayed in the forwards of a ``prune_vit`` block.

    Attributes:
        calls: for each forward, by layer, (B, K) long: the patches that are left from there on, or from its MLP on, by
            their number in the image, ascending.
    """

    calls: list[dict[int, Tensor]] = field(default_factory=list)

    @property
    def stages(self) -> dict[int, Tensor]:
        """Patches that were left of the last forward, by layer, each (B, K) long.

        Raises:
            TokenPruneError: if there was none.
        """
        if not self.calls:
            raise TokenPruneError("nothing was pruned: the model was not called in this block")
        return self.calls[-1]

    @property
    def keep(self) -> Tensor:
        """Patches (B, K) long that reached the end of the last forward; errors are those of ``stages``."""
        return list(self.stages.values())[-1]


@dataclass(eq=False)
class VitBlock:
    """An open ``with`` block; see ``interception.Handler`` for its calls.

    Attributes:
        model, spec: what is pruned.
        pruner, stages, budget: and how; see ``prune_vit``.
        own: whether the stages and their counts are the pruner's; else each stage leaves the same share.
        trace: for the user.
    """

    model: Any
    spec: ModelSpec
    pruner: Pruner
    stages: tuple[Stage, ...]
    budget: Budget
    own: bool = False
    trace: VitTrace = field(default_factory=VitTrace)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The pruner at each of its stages."""
        return tuple(Step(stage, self.pruner, "original") for stage in self.stages)

    def counts(self, total: int) -> tuple[int, ...]:
        """How many of so many patches each stage leaves: what the pruner says, or the same share of what arrives.

        Raises:
            BudgetError: if the budget cannot be met.
        """
        last = len(self.stages)  # blocks are the layers of its spec
        stages = [decoder(stage.layer or 0, after=stage.after) for stage in self.stages]

        def left(keep: int) -> tuple[int, ...]:
            if self.own:
                return self.pruner.counts(self.spec, keep, total)
            return tuple(round(total * (keep / total) ** (place / last)) for place in range(1, last + 1))

        def spent(keep: int) -> float:
            plan, budget = OperationPlan.drop_at(self.spec, stages, left(keep), total), self.budget
            return plan.mean_tokens if budget.flops is None else plan.prefill_flops(self.spec.llm, budget.text_tokens)

        return left(self.budget.resolve(total, spent))

    def passes(self, entry: str, kwargs: dict[str, Any]) -> bool:
        """Whether a call is a part of one of this block: methods of the model call one another."""
        hooks = active()
        return hooks is not None and hooks.owner is self

    def call(self, entry: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the model with hooks.

        Raises:
            ModelError: if the patches are asked for as a grid, which those that are left are not.
        """
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.arguments.get("output_fmt") == "NCHW" or bound.arguments.get("reshape"):
            raise ModelError(
                f"the patches that are left are no grid; ask {entry} for output_fmt='NLC', without reshape"
            )
        behind = [stage.layer for stage in self.stages if stage.after and stage.layer is not None]
        with TowerHooks(timm_tower(self.model), self.model, self._begin, behind, owner=self).on():
            return original(*args, **kwargs)

    def _begin(self, pictures: Tensor) -> TowerForward:
        """A forward of some pictures."""
        if self.model.grad_checkpointing and torch.is_grad_enabled():
            raise ModelError("gradient checkpointing runs blocks twice; call model.set_grad_checkpointing(False)")
        height, width = self.model.patch_embed.dynamic_feat_size(pictures.shape[-2:])
        number = height * width
        return TowerForward(
            timm_tower(self.model),
            self.model,
            self.steps,
            self.counts(number),
            pictures,
            (height, width),
            PatchesLeft(number),
            chosen=self._note,
        )

    def _note(self, forward: TowerForward) -> None:
        self.trace.calls.append({stage.layer or 0: kept for stage, kept in forward.left.stages.items()})
