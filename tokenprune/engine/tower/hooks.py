"""What an open ``tokenprune.prune_vit`` block does with the forwards of its model.

While a call runs, forward pre-hooks shorten what blocks get; the model's own modules run unchanged. Prefix tokens (CLS,
distillation, registers) always stay, and rotary embeddings go with their patches. In other threads the hooks do
nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError, TokenPruneError
from tokenprune.core.plan import OperationPlan
from tokenprune.core.selection import TokenSelection
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import decoder
from tokenprune.core.steps import Selector
from tokenprune.core.tokens import VisualTokens
from tokenprune.engine.prompt.layout import content_id
from tokenprune.functional.vectors import take
from tokenprune.towers.timm_attention import attention_signals


@dataclass(frozen=True, eq=False)
class VitTrace:
    """What stayed in the forwards of a ``prune_vit`` block.

    Attributes:
        calls: for each forward, by layer, (B, K) long: the patches that are left from there on, by their number in the
            image, ascending.
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
class Run:
    """A forward that is under way.

    Attributes:
        images: (B, 3, height, width), pixels.
        grid: (height, width) of the patches.
        counts: patches that each stage leaves.
        attended: input of the attention before the next stage and its rotary embeddings; None if nobody asks.
        kept: (B, n) long, which patches are left; None while all are.
        stages: for the trace.
    """

    images: Tensor
    grid: tuple[int, int]
    counts: tuple[int, ...]
    attended: tuple[Tensor, Tensor | None] | None = None
    kept: Tensor | None = None
    stages: dict[int, Tensor] = field(default_factory=dict)


_CALL: ContextVar[VitCall | None] = ContextVar("tokenprune_vit_call", default=None)


@dataclass(eq=False)
class VitBlock:
    """An open ``with`` block; see ``interception.Handler`` for its calls.

    Attributes:
        model, spec: what is pruned.
        pruner, layers, budget: and how; see ``prune_vit``.
        trace: for the user.
    """

    model: Any
    spec: ModelSpec
    pruner: Selector
    layers: tuple[int, ...]
    budget: Budget
    trace: VitTrace = field(default_factory=VitTrace)

    def counts(self, total: int) -> tuple[int, ...]:
        """How many of so many patches each stage leaves: the same share of what arrives at it.

        Raises:
            BudgetError: if the budget cannot be met.
        """
        last, stages = len(self.layers), [decoder(at) for at in self.layers]  # blocks are the layers of its spec

        def left(keep: int) -> tuple[int, ...]:
            return tuple(round(total * (keep / total) ** (place / last)) for place in range(1, last + 1))

        def spent(keep: int) -> float:
            plan, budget = OperationPlan.drop_at(self.spec, stages, left(keep), total), self.budget
            return plan.mean_tokens if budget.flops is None else plan.prefill_flops(self.spec.llm, budget.text_tokens)

        return left(self.budget.resolve(total, spent))

    def passes(self, entry: str, kwargs: dict[str, Any]) -> bool:
        """Whether a call is a part of one of this block: methods of the model call one another."""
        call = _CALL.get()
        return call is not None and call.block is self

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
        with VitCall(self).hooked():
            return original(*args, **kwargs)


@dataclass(eq=False)
class VitCall:
    """A call of the model, whose hooks go with it however it ends, and do nothing in other threads.

    Attributes:
        block: that it belongs to.
        run: the forward in it that is under way.
    """

    block: VitBlock
    run: Run | None = None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The hooks are on the model in this ``with`` block, which lies within one function."""
        blocks, layers = self.block.model.blocks, self.block.layers
        with ExitStack() as stack:
            stack.callback(_CALL.reset, _CALL.set(self))
            stack.enter_context(self.block.model.patch_embed.register_forward_pre_hook(self._start))
            for index in range(layers[0], len(blocks)):
                hook = partial(self._before, index)
                stack.enter_context(blocks[index].register_forward_pre_hook(hook, with_kwargs=True))
            for at in layers if self.block.pruner.requires else ():
                stack.enter_context(blocks[at - 1].attn.register_forward_pre_hook(self._attending, with_kwargs=True))
            stack.enter_context(blocks[-1].register_forward_hook(self._end))
            yield

    def _start(self, module: Any, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of the patch embedding, with which every forward begins."""
        if _CALL.get() is not self:
            return
        if self.block.model.grad_checkpointing and torch.is_grad_enabled():
            raise ModelError("gradient checkpointing runs blocks twice; call model.set_grad_checkpointing(False)")
        height, width = module.dynamic_feat_size(args[0].shape[-2:])
        self.run = Run(args[0], (height, width), self.block.counts(height * width))

    def _current(self) -> Run | None:
        return self.run if _CALL.get() is self else None

    def _end(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        if _CALL.get() is self:
            self.run = None

    def _attending(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if (run := self._current()) and kwargs is not None:
            run.attended = args[0], kwargs.get("rope")

    def _before(self, index: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Forward pre-hook of a block: shorten the hidden states at a stage, and rotary embeddings from there on.

        Torch leaves out the keyword arguments if another thread, whose hook this is, is removing it.
        """
        run, hidden = self._current(), args[0]
        if run is None or kwargs is None:
            return None
        if kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
            raise ModelError("attn_mask and is_causal are of all patches; leave them out where patches are pruned")
        if index in self.block.layers:
            hidden = self._shorten(run, index, hidden)
        if run.kept is None:
            return None
        if kwargs.get("rope") is not None:
            kwargs = {**kwargs, "rope": _of_kept(kwargs["rope"], run.kept)}
        return (hidden, *args[1:]), kwargs

    def _shorten(self, run: Run, index: int, hidden: Tensor) -> Tensor:
        """The prefix and the patches that stay, of the hidden states (B, L, D) at a stage."""
        prefix = self.block.model.num_prefix_tokens
        patches = hidden[:, prefix:]
        number = patches.shape[1]
        if run.kept is None and number != run.grid[0] * run.grid[1]:
            raise ModelError("some patches left before the first block; switch the model's patch dropout off")
        selection = self._select(run, index, patches.detach())
        alive = selection.keep if run.kept is None else run.kept.gather(1, selection.keep)
        run.stages[index] = alive
        if index == self.block.layers[-1]:
            self.block.trace.calls.append(run.stages)
        if selection.merged is not None and selection.merged.shape[1] != alive.shape[1]:
            raise ModelError("tokens can be appended inside the LLM only")
        if selection.merged is None and alive.shape[1] == number:
            return hidden
        run.kept = alive
        left = take(patches, selection.keep) if selection.merged is None else selection.merged.to(patches)
        return torch.cat([hidden[:, :prefix], left], 1)

    @torch.no_grad()
    def _select(self, run: Run, index: int, patches: Tensor) -> TokenSelection:
        signals, place = {}, self.block.layers.index(index)
        if run.attended is not None:
            attention, prefix = self.block.model.blocks[index - 1].attn, self.block.model.num_prefix_tokens
            wanted = frozenset(each for signal in self.block.pruner.requires for each in signal.alternatives)
            found = attention_signals(attention, *run.attended, prefix, wanted)
            signals = {str(signal): value for signal, value in found.items()}
            run.attended = None
        # With the place, so that a random draw at one stage tells nothing about that at another.
        grid = run.grid if run.kept is None else None

        def ids() -> Tensor:
            return torch.stack([content_id(image) for image in run.images]) + 2 * place

        return self.block.pruner.select(VisualTokens(patches, signals, grid, row_ids=ids), run.counts[place])


def _of_kept(rope: Tensor, kept: Tensor) -> Tensor:
    """Rotary embeddings ([B, or 1,] [heads, or 1,] N, d) of the patches that are left: (B, heads or 1, n, d)."""
    whole = rope.expand(len(kept), *rope.shape[-3:]) if rope.dim() > 2 else rope.expand(len(kept), 1, *rope.shape)
    return whole.gather(2, kept[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3]))
