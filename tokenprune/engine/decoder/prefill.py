"""The forward of a prompt through an LLM that prunes inside."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapters.cache_argument import CACHE
from tokenprune.core.errors import ModelError
from tokenprune.core.placement import device_of
from tokenprune.core.signals import Scored, ScoringLayer
from tokenprune.core.stages import Stage, cache, decoder
from tokenprune.core.steps import Step, scoring_layers
from tokenprune.engine.decoder.aligned import aligned
from tokenprune.engine.decoder.alive import Alive
from tokenprune.engine.decoder.choose import Chosen, choose, handed_on, made, only_drops, staying
from tokenprune.engine.decoder.cut import cut, cut_to
from tokenprune.engine.decoder.deepstack import DeepStack
from tokenprune.engine.decoder.inside_plan import PromptTokens
from tokenprune.engine.decoder.operations import LayerRows, Rows, Running
from tokenprune.engine.decoder.rotation import Rotations
from tokenprune.engine.decoder.stage_view import StageView
from tokenprune.engine.decoder.tap import Attended, attended
from tokenprune.engine.stopwatch import stopwatch
from tokenprune.functional.vectors import take

Arguments = dict[str, Any]


class Prefill:
    """One forward of the prompts.

    Args:
        llm: the decoder.
        kind: of the masks that its attention takes.
        steps: what selects at which layers.
        prompt: aligned with ``embeds``.
        valid: (B, L) bool, False for padding, on any device.
        embeds: (B, L, D), the LLM's input.
        columns: of the prompt, without what ``generate`` added.
        active: (layers, 3, groups) bool, see ``Operations``; None if everything runs.
        stack: what is added behind layers that see less than the prompt; None if nothing is.

    Attributes:
        layers: what each layer holds, from the first stage on.
        stages: what went on from each step.
        behind: what goes on from the layer that runs, once its attention is through; None if all do.
        seconds: that the selections took.
    """

    def __init__(
        self,
        llm: Any,
        kind: str,
        steps: Sequence[Step],
        prompt: PromptTokens,
        valid: Tensor,
        embeds: Tensor,
        columns: int,
        active: Tensor | None = None,
        stack: DeepStack | None = None,
    ) -> None:
        self.llm, self.kind, self.steps, self.prompt, self.columns = llm, kind, steps, prompt, columns
        self.embeds = embeds.detach()
        self.rotations = Rotations(llm.rotary_emb)
        self.whole = prompt.alive(valid.to(embeds.device))
        self.alive = self.whole
        self.layers: dict[int, Alive] = {}
        self.stages: list[Alive] = []
        self.seconds = {"selection": 0.0}
        self._attended: Attended | None = None
        self._arrived: list[list[int]] = []  # visual tokens of each row at each step so far
        self._entered: Arguments = {}  # of the layer that runs
        self._active, self.stack = active, stack
        self._filled: Any = None  # the cache, which some models make when the forward has begun
        self.running: Running | None = None
        self.behind: Rows | None = None

    def note(self, what: Attended) -> None:
        """Remember what the layer before a stage attended with."""
        self._attended = what

    def idle(self, index: int, arguments: Arguments) -> bool:
        """Whether a layer's arguments are right as they are."""
        return False

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled layers are compiled without what selects
    def enter(self, index: int, layer: nn.Module, arguments: Arguments) -> Arguments:
        """The arguments of a layer, shortened."""
        hidden, self.running, self._filled = arguments["hidden_states"], None, arguments.get(CACHE)
        hidden = hidden.to(device_of(layer, hidden.device))
        arguments = {**arguments, "hidden_states": hidden}
        untouched, self.alive = self.alive is self.whole, self.alive.to(hidden.device)
        self.whole = self.alive if untouched else self.whole
        if self.stack is not None:
            hidden = self.stack.add(index, hidden, self.alive)
            arguments["hidden_states"] = hidden
        if self._next(decoder(index)):
            hidden = self._prune(layer, self._fit(arguments, self.alive))
        self.layers[index] = self.alive
        if self._active is not None:
            hidden = self._operate(index, self._active, {**arguments, "hidden_states": hidden})
        entered = {**self._fit(arguments, self.alive), "hidden_states": hidden}
        self._entered = dict(entered) if self._stops_behind(index) else {}
        return entered

    def _stops_behind(self, index: int) -> bool:
        """Whether there is a step behind the attention of a layer."""
        return any(step.stage.layer == index and step.stage.behind_attention for step in self.steps)

    def _next(self, stage: Stage) -> bool:
        """Whether the next step is at a stage."""
        done = len(self.stages)
        return done < len(self.steps) and replace(self.steps[done].stage, earlier_caches=False) == stage

    def _operate(self, index: int, active: Tensor, arguments: Arguments) -> Tensor:
        """Let go of tokens that nothing runs for any more, and note who takes part in what of this layer."""
        hidden: Tensor = arguments["hidden_states"]
        group = self.prompt.group
        assert group is not None
        gone = ~active[index:].any(dim=0).any(dim=0)
        own = group.to(hidden.device).gather(1, self.alive.slots)
        leaving = self.alive.visual & gone.to(hidden.device)[own]
        if bool(leaving.any()):
            self.alive, order = self.alive.keep(
                self.alive.valid & ~leaving, leaving.new_zeros(len(leaving), 0), repack=False
            )
            hidden, own = take(hidden, order), own.gather(1, order)
        self.layers[index] = self.alive
        if not bool(active[index].all()):
            key = ("rows", tuple(active[index].flatten().tolist()))
            if key not in self.alive.memo:
                self.alive.memo[key] = LayerRows.of(self.alive, own, active[index])
            rows, mask = self.alive.memo[key], arguments.get("attention_mask")
            fit, parts = functools.partial(self._fit, arguments), getattr(arguments.get(CACHE), "layers", ())
            storage = parts[index] if index < len(parts) else None  # a dynamic cache may grow by layers, too
            self.running = Running(self.alive, rows, fit, mask, self.kind, storage)
            self.layers[index] = self.running.rows.held(self.alive)
        return hidden

    def _fit(self, arguments: Arguments, alive: Alive) -> Arguments:
        """A layer's arguments for some of the tokens, apart from the hidden states."""
        if alive is self.whole and alive.bias is None:
            return arguments
        return {**arguments, **aligned(alive, arguments, self.kind, self.rotations)}

    def finish(self, output: Any) -> None:
        """Give the last hidden states the prompt's columns back, and let go of masks and position embeddings."""
        if self.alive is not self.whole:
            last = output.last_hidden_state  # after the norm, which may be on another GPU than the layer before it
            output.last_hidden_state = self.alive.to(last.device).spread(last, self.embeds.shape[1])
            if output.get("hidden_states"):
                output.hidden_states = (*output.hidden_states[:-1], output.last_hidden_state)
        for alive in (*self.stages, *self.layers.values()):
            alive.memo.clear()

    # A stage

    def _prune(self, layer: nn.Module, arguments: Arguments) -> Tensor:
        """Let the pruner of a layer's input select; the hidden states of what goes on, (B, n', D)."""
        hidden, alive = arguments["hidden_states"], self.alive
        step, chosen = self._choose(layer, arguments, alive, hidden)
        if any(each.selection.heads is not None for each in chosen):
            raise ModelError("heads can keep different tokens in a cache only")
        if self.kind == "padding" and any(each.selection.bias is not None for each in chosen):
            raise ModelError("flash attention takes no bias on keys; load the model with sdpa")
        hidden, there = made(hidden, chosen)
        alive, stay = handed_on(alive, chosen), staying(alive, chosen)
        self.alive, order = alive.keep(stay, there, repack=step.positions == "repacked")
        self._note_stage(step, self.alive)
        return take(hidden, order)

    def attended_by(self, layer: nn.Module, hidden: Tensor) -> None:
        """Let tokens leave a layer before its MLP.

        Args:
            layer: the layer.
            hidden: (B, n, D), after its attention.
        """
        step, chosen = self._choose(layer, self._entered, self.alive, hidden)
        only_drops(chosen, f"the stage {step.stage}")
        self.behind = Rows.of(self.alive, staying(self.alive, chosen), repack=step.positions == "repacked")
        self._note_stage(step, self.behind.alive)

    def leave(self, index: int, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The output (B, n', D) of a layer that has run, (B, n, D), without what left behind its attention.

        Args:
            index: of the layer.
            layer: the layer.
            hidden: its output.
        """
        if self._next(cache(index)):
            self._cut(index, layer, hidden)
        if self.behind is not None:
            behind, self.behind = self.behind, None
            self.alive, hidden = behind.alive, behind.gather(hidden)
        self._attended, self._entered = None, {}  # not kept any longer than needed: they are large
        return hidden

    def _cut(self, index: int, layer: nn.Module, hidden: Tensor) -> None:
        """Let the pruner of a layer's cache select, and cut it."""
        held = self.layers[index]
        if held.slots.shape[1] != hidden.shape[1]:
            raise ModelError(f"the stage before has cut the cache that {cache(index)} is to cut")
        step, chosen = self._choose(layer, self._entered, held, hidden)
        only_drops(chosen, f"the stage {step.stage}")
        stay = staying(held, chosen)
        if stay.dim() == 3 and self.kind == "padding":
            raise ModelError("flash attention takes one mask for all heads of a cache; load the model with sdpa")
        if self._filled is None:  # all that a cache is cut for is what comes later
            after = held.masked(stay) if stay.dim() == 2 else held.by_head(stay.shape[1]).masked(stay.flatten(0, 1))
        else:
            after = self.layers[index] = cut(self._filled.layers[index], held, stay, in_place=index == 0)
        self.stages.append(after)

    def _note_stage(self, step: Step, alive: Alive) -> None:
        """Note what goes on from a stage, and cut the caches that were filled before if it is to leave them, too."""
        self.stages.append(alive)
        if not step.stage.earlier_caches or self._filled is None:
            return
        length = self.embeds.shape[1]
        for index in range(step.stage.first_without):
            held, storage = self.layers[index], self._filled.layers[index]
            self.layers[index] = cut_to(storage, held, alive, length, in_place=index == 0)

    def _choose(
        self, layer: nn.Module, arguments: Arguments, alive: Alive, hidden: Tensor
    ) -> tuple[Step, list[Chosen]]:
        """The next step and what its pruner chooses among some tokens.

        Args:
            layer: where.
            arguments: of the layer.
            alive: the tokens.
            hidden: (B, n, D), what the pruner sees of them.
        """
        number, selector = len(self.stages), self.steps[len(self.stages)].selector
        quota = [each[number] for each in self.prompt.quota]
        history = [(*past, *own) for past, *own in zip(self.prompt.history, *self._arrived, strict=True)]
        self._arrived.append(alive.counts)
        with torch.no_grad(), stopwatch(self.seconds, "selection", hidden.device):
            view = StageView(
                alive=alive,
                prompt=self.whole.to(hidden.device),
                hidden=hidden.detach(),
                embeds=self.embeds.to(hidden.device),
                attended=self._scores(self.steps[number], layer, arguments),
                rotation=arguments["position_embeddings"],
                norm=self.llm.norm,
                columns=self.columns,
            )
            chosen = choose(view, selector, quota, history, self.prompt.ids)
        if any(each.selection.sequence is not None for each in chosen):
            raise ModelError("tokens can be put in another order before the LLM only")
        return self.steps[number], chosen

    def _scores(self, step: Step, layer: Any, arguments: Arguments) -> dict[ScoringLayer, Attended]:
        """Queries and keys of the scoring layers; empty if no signal is made of them."""
        found, layers = dict[ScoringLayer, Attended](), scoring_layers(step.selector.requires)
        if "own" in layers and not step.stage.behind_attention:
            found["own"] = would_attend(step, layer, arguments, self.alive, self.columns)
        if "previous" in layers or (step.stage.behind_attention and layers):
            if self._attended is None:
                name = type(layer.self_attn).__name__
                raise ModelError(f"{name} does not attend by transformers' attention interface, so it cannot be read")
            found["previous"] = self._attended.to(arguments["hidden_states"].device)
            if step.stage.behind_attention:  # the stage's own layer is the one that ran last
                found["own"] = found["previous"]
            else:
                self._attended = None  # not kept any longer than needed: it is large
        return found


def would_attend(step: Step, layer: Any, arguments: Arguments, alive: Alive, columns: int) -> Attended:
    """What a layer would attend with that has not run yet.

    Args:
        step: at its input.
        layer: the layer.
        arguments: of it.
        alive: tokens at the stage.
        columns: of the prompt.
    """
    signals = (each for signal in step.selector.requires for each in signal.alternatives)
    reads_all = any(isinstance(each, Scored) and each.layer == "own" and each.all_rows for each in signals)
    last = None if reads_all else torch.where(alive.valid & (alive.slots < columns), alive.slots, -1).argmax(1)
    normed, rotation = layer.input_layernorm(arguments["hidden_states"]), arguments["position_embeddings"]
    return attended(layer.self_attn, normed, rotation, arguments.get("attention_mask"), last)
