"""The forward of a prompt through an LLM that prunes inside."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapters.cache_argument import CACHE
from tokenprune.core.errors import ModelError
from tokenprune.core.placement import device_of
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Scored, ScoringLayer
from tokenprune.core.steps import Selector, Step, scoring_layers
from tokenprune.core.tokens import VisualTokens
from tokenprune.engine.decoder.alive import Alive
from tokenprune.engine.decoder.deepstack import DeepStack
from tokenprune.engine.decoder.inside_plan import PromptTokens
from tokenprune.engine.decoder.masks import build, narrow
from tokenprune.engine.decoder.operations import LayerRows, Running
from tokenprune.engine.decoder.rotation import Pair, Rotations
from tokenprune.engine.decoder.stage_view import StageRows, StageView
from tokenprune.engine.decoder.tap import Attended, attended
from tokenprune.engine.providers.base import stage_signals
from tokenprune.engine.stopwatch import stopwatch
from tokenprune.functional.vectors import of_rows, take

Arguments = dict[str, Any]
Selected = tuple[Tensor, Tensor, TokenSelection]  # rows (G,), their visual tokens (G, N) among those alive, the choice


class Prefill:
    """One forward of the prompts.

    Args:
        decoder: the LLM.
        kind: of the masks that its attention takes.
        steps: what selects at which layers.
        prompt: aligned with ``embeds``.
        valid: (B, L) bool, False for padding, on any device.
        embeds: (B, L, D), the LLM's input.
        columns: of the prompt, without what ``generate`` added.
        active: (layers, 3, groups) bool, see ``Operations``; None if everything runs.
        stack: what is added behind layers that see less than the prompt; None if nothing is.

    Attributes:
        layers: what is alive in each layer from the first stage on.
        stages: what went on from each step.
        seconds: that the selections took.
    """

    def __init__(
        self,
        decoder: Any,
        kind: str,
        steps: Sequence[Step],
        prompt: PromptTokens,
        valid: Tensor,
        embeds: Tensor,
        columns: int,
        active: Tensor | None = None,
        stack: DeepStack | None = None,
    ) -> None:
        self.decoder, self.kind, self.steps, self.prompt, self.columns = decoder, kind, steps, prompt, columns
        self.embeds = embeds.detach()
        self.rotations = Rotations(decoder.rotary_emb)
        self.whole = Alive.prompt(valid.to(embeds.device), prompt.visual, prompt.number)
        self.alive = self.whole
        self.layers: dict[int, Alive] = {}
        self.stages: list[Alive] = []
        self.seconds = {"selection": 0.0}
        self._attended: Attended | None = None
        self._active, self.stack = active, stack
        self.running: Running | None = None

    def note(self, what: Attended) -> None:
        """Remember what the layer before a stage attended with."""
        self._attended = what

    def idle(self, index: int, arguments: Arguments) -> bool:
        """Whether a layer's arguments are right as they are."""
        return False

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled layers are compiled without what selects
    def enter(self, index: int, layer: nn.Module, arguments: Arguments) -> Arguments:
        """The arguments of a layer, shortened."""
        hidden, self.running = arguments["hidden_states"], None
        hidden = hidden.to(device_of(layer, hidden.device))
        arguments = {**arguments, "hidden_states": hidden}
        untouched, self.alive = self.alive is self.whole, self.alive.to(hidden.device)
        self.whole = self.alive if untouched else self.whole
        if self.stack is not None:
            hidden = self.stack.add(index, hidden, self.alive)
            arguments["hidden_states"] = hidden
        if any(step.stage.layer == index for step in self.steps):
            hidden = self._prune(layer, self._fit(arguments, self.alive))
        self.layers[index] = self.alive
        if self._active is not None:
            hidden = self._operate(index, self._active, {**arguments, "hidden_states": hidden})
        return {**self._fit(arguments, self.alive), "hidden_states": hidden}

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
        return {**arguments, **self._aligned(alive, arguments)}

    def finish(self, output: Any) -> None:
        """Give the last hidden states the prompt's columns back, and let go of masks and position embeddings."""
        if self.alive is not self.whole:
            last = output.last_hidden_state  # after the norm, which may be on another GPU than the layer before it
            output.last_hidden_state = self.alive.to(last.device).spread(last, self.embeds.shape[1])
            if output.get("hidden_states"):
                output.hidden_states = (*output.hidden_states[:-1], output.last_hidden_state)
        for alive in (*self.stages, *self.layers.values()):
            alive.memo.clear()

    def _aligned(self, alive: Alive, arguments: Arguments) -> Arguments:
        """The arguments of a layer that are aligned with the tokens; none if all tokens are alive."""
        hidden, given = arguments["hidden_states"], arguments["position_embeddings"]
        if alive is self.whole:
            return {}
        positions = torch.arange(alive.slots.shape[1], device=hidden.device)[None]
        return {
            "attention_mask": self._mask(alive, arguments.get("attention_mask"), hidden.dtype),
            "position_embeddings": self._rotation(alive, given),
            # The embeddings are all that positions are for; kernels would take gaps in them for packed sequences.
            **({"position_ids": positions} if arguments.get("position_ids") is not None else {}),
        }

    def _mask(self, alive: Alive, given: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        key = ("mask", id(given))
        if key not in alive.memo:
            if given is not None and given.dim() == 4:
                mask = narrow(given, alive.slots, alive.valid, doubled=alive.appended)
            elif given is None and not alive.padded:
                mask = None
            else:
                mask = build(self.kind, alive.valid, alive.slots.shape[1], 0, dtype)
            alive.memo[key] = mask, given  # with what the id is of, so that it stays that
        kept: Tensor | None = alive.memo[key][0]
        return kept

    def _rotation(self, alive: Alive, given: Pair) -> Pair:
        key = ("rotation", id(given[0]))
        if key not in alive.memo:
            if alive.closed is None:
                rotation = (alive.gather(given[0]), alive.gather(given[1]))
            else:
                rotation = self.rotations.at(alive.positions(self.rotations.positions), given)
            alive.memo[key] = rotation, given
        kept: Pair = alive.memo[key][0]
        return kept

    # A stage

    def _prune(self, layer: nn.Module, arguments: Arguments) -> Tensor:
        """Let the stage's pruner select; the hidden states of what goes on, (B, n', D)."""
        number = len(self.stages)
        selector, hidden, alive = self.steps[number].selector, arguments["hidden_states"], self.alive
        with torch.no_grad(), stopwatch(self.seconds, "selection", hidden.device):
            chosen = self._select(number, layer, arguments)
        stay, appended = alive.valid & ~alive.visual, 0
        for rows, visual, selection in chosen:
            if selection.sequence is not None:
                raise ModelError("tokens can be put in another order before the LLM only")
            stay[rows[:, None], visual] = selection.kept
            appended = max(appended, _appended(selection))
        extra = hidden.new_zeros(len(hidden), appended, hidden.shape[2])
        there = torch.zeros(extra.shape[:2], dtype=torch.bool, device=hidden.device)
        for rows, visual, selection in chosen:
            if selection.into is not None:
                kept, folded = selection.there, selection.apply(take(of_rows(hidden, rows), visual))
                where = (rows[:, None].expand_as(kept)[kept], visual.gather(1, selection.keep.clamp(min=0))[kept])
                hidden = hidden.index_put(where, folded[kept])
            if selection.merged is not None:
                k, merged = selection.keep.shape[1], selection.merged.to(hidden.dtype)
                hidden = hidden.index_put((rows[:, None], visual.gather(1, selection.keep)), merged[:, :k])
                extra[rows, : merged.shape[1] - k] = merged[:, k:]
                there[rows, : merged.shape[1] - k] = True
        self.alive, order = alive.keep(stay, there, repack=selector.positions == "repacked")
        self.stages.append(self.alive)
        return take(torch.cat([hidden, extra], 1) if appended else hidden, order)

    def _select(self, number: int, layer: nn.Module, arguments: Arguments) -> list[Selected]:
        """The pruner's choices, for rows of equal numbers at once."""
        selector, hidden, alive = self.steps[number].selector, arguments["hidden_states"], self.alive
        groups = defaultdict(list)
        for row, (left, total) in enumerate(zip(alive.counts, self.whole.counts, strict=True)):
            if left:
                k = min(self.prompt.quota[row][number], left)
                groups[left, k, total, row if selector.adaptive else None].append(row)
        view = StageView(
            alive=alive,
            prompt=self.whole.to(hidden.device),
            hidden=hidden.detach(),
            embeds=self.embeds.to(hidden.device),
            attended=self._scores(selector, layer, arguments),
            rotation=arguments["position_embeddings"],
            norm=self.decoder.norm,
            columns=self.columns,
        )
        chosen = []
        for (left, k, _, _), members in groups.items():
            rows = torch.tensor(members, device=hidden.device)
            visual = of_rows(alive.visual, rows).nonzero()[:, 1].view(len(members), left)
            if k == 0:  # nothing to choose: all of them leave
                nothing = rows.new_zeros(len(members), 0)
                chosen.append((rows, visual, TokenSelection(nothing, left)))
                continue
            signals = {str(signal): value for signal, value in stage_signals(StageRows(view, rows, visual), selector)}
            ids = functools.partial(self._ids, rows)
            tokens = VisualTokens(take(of_rows(view.hidden, rows), visual), signals, row_ids=ids)
            chosen.append((rows, visual, selector.select(tokens, k)))
        return chosen

    def _ids(self, rows: Tensor) -> Tensor:
        return self.prompt.ids().to(rows.device)[rows]

    def _scores(self, selector: Selector, layer: Any, arguments: Arguments) -> dict[ScoringLayer, Attended]:
        """Queries and keys of the scoring layers; empty if no signal is made of them."""
        hidden, found = arguments["hidden_states"], dict[ScoringLayer, Attended]()
        layers = scoring_layers(selector.requires)
        if "own" in layers:
            normed, rotation = layer.input_layernorm(hidden), arguments["position_embeddings"]
            prompt = self.alive.valid & (self.alive.slots < self.columns)
            last = None if _reads_all(selector) else torch.where(prompt, self.alive.slots, -1).argmax(1)
            found["own"] = attended(layer.self_attn, normed, rotation, arguments.get("attention_mask"), last)
        if "previous" in layers:
            what, self._attended = self._attended, None  # not kept any longer than needed: it is large
            if what is None:
                name = type(layer.self_attn).__name__
                raise ModelError(f"{name} does not attend by transformers' attention interface, so it cannot be read")
            found["previous"] = what.to(hidden.device)
        return found


def _reads_all(selector: Selector) -> bool:
    """Whether a signal of the stage's own layer is of more than the last token."""
    signals = (each for signal in selector.requires for each in signal.alternatives)
    return any(isinstance(each, Scored) and each.layer == "own" and each.all_rows for each in signals)


def _appended(selection: TokenSelection) -> int:
    """M, tokens that a selection appends."""
    return 0 if selection.merged is None else selection.merged.shape[1] - selection.keep.shape[1]
