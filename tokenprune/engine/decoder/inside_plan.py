"""What is pruned inside the LLM of which prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.core.steps import Step
from tokenprune.engine.decoder.alive import Alive


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """The prompts of a call, as the LLM sees them.

    Attributes:
        visual: (B, L) bool, where visual tokens are that may leave.
        number: (B, L) long, which of its row's visual tokens each is, counting those that left before the LLM and those
            that may not leave; -1 for text.
        quota: of each row, how many visual tokens each stage selects.
        ids: makes (B,) long, see ``VisualTokens.row_ids``.
        group: (B, L) long, each visual token's group of ``Operations``; None if there are none.
        past: of each row, see ``VisualTokens.history``, as it is at the first stage inside; empty if there was none.
        bias: (B, L), see ``Alive``; None if no stage before the LLM gave one.
        labels: (B, L) long, likewise.
    """

    visual: Tensor
    number: Tensor
    quota: Sequence[Sequence[int]]
    ids: Callable[[], Tensor]
    group: Tensor | None = None
    past: Sequence[tuple[int, ...]] = ()
    bias: Tensor | None = None
    labels: Tensor | None = None

    @property
    def history(self) -> Sequence[tuple[int, ...]]:
        """Of each row, visual tokens that arrived at each stage before the LLM."""
        return self.past or [()] * len(self.visual)

    def alive(self, valid: Tensor) -> Alive:
        """The tokens of these prompts, (B, L) bool of which are no padding, as they enter the LLM."""
        return Alive.prompt(valid, self.visual, self.number, bias=self.bias, labels=self.labels)

    @property
    def columns(self) -> int:
        """Columns of the prompts, L."""
        return self.visual.shape[1]

    def aligned(self, embeds: Tensor) -> PromptTokens:
        """These prompts as ``generate`` repeated them for beams, and added tokens to their ends."""
        copies, more = len(embeds) // len(self.visual), embeds.shape[1] - self.columns

        def fit(x: Tensor, filler: int) -> Tensor:
            return torch.nn.functional.pad(x, (0, more), value=filler).repeat_interleave(copies, 0).to(embeds.device)

        aligned = {"group": (self.group, 0), "bias": (self.bias, 0), "labels": (self.labels, -1)}
        fitted = {name: None if x is None else fit(x, filler) for name, (x, filler) in aligned.items()}
        quota = [each for each in self.quota for _ in range(copies)]
        past = [each for each in self.past for _ in range(copies)]

        def ids() -> Tensor:
            return self.ids().repeat_interleave(copies).to(embeds.device)

        return PromptTokens(fit(self.visual, False), fit(self.number, -1), quota, ids, past=past, **fitted)


@dataclass(frozen=True, eq=False)
class InsidePlan:
    """What prunes inside the LLM while a model runs on some prompts; see ``hooks.InsideLLM``, which does it.

    Attributes:
        steps: what selects at which layers, in their order.
        prompt: the prompts.
        active: (layers, 3, groups) bool, see ``Operations``; None if everything runs.
    """

    steps: tuple[Step, ...]
    prompt: PromptTokens
    active: Tensor | None = None


@dataclass(frozen=True, eq=False)
class HeldPrompt:
    """What a cache holds of prompts that were pruned inside the LLM.

    Attributes:
        plan: by which they were.
        layers: what each layer holds, from the first on that holds less than the prompt.
    """

    plan: InsidePlan
    layers: Mapping[int, Alive]
