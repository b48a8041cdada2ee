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
    """

    visual: Tensor
    number: Tensor
    quota: Sequence[Sequence[int]]
    ids: Callable[[], Tensor]
    group: Tensor | None = None

    @property
    def columns(self) -> int:
        """Columns of the prompts, L."""
        return self.visual.shape[1]

    def aligned(self, embeds: Tensor) -> PromptTokens:
        """These prompts as ``generate`` repeated them for beams, and added tokens to their ends."""
        copies, more = len(embeds) // len(self.visual), embeds.shape[1] - self.columns

        def fit(x: Tensor, filler: int) -> Tensor:
            return torch.nn.functional.pad(x, (0, more), value=filler).repeat_interleave(copies, 0).to(embeds.device)

        group = None if self.group is None else fit(self.group, 0)
        quota = [each for each in self.quota for _ in range(copies)]

        def ids() -> Tensor:
            return self.ids().repeat_interleave(copies).to(embeds.device)

        return PromptTokens(fit(self.visual, False), fit(self.number, -1), quota, ids, group)


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
