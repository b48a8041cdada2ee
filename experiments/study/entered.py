"""The visual tokens that a pruner lets into the LLM, under many plans of operations: a study's unit of work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.core.budget import Budget
from tokenprune.core.plan import Operations
from tokenprune.engine.decoder.inside_plan import InsidePlan
from tokenprune.engine.decoder.replay import Replay
from tokenprune.engine.prompt.pruned import prompt_tokens
from tokenprune.functional.divergence import kl
from tokenprune.policies.divergence import Batch
from tokenprune.pruners.base import Pruner


@dataclass(frozen=True, eq=False)
class Distances:
    """How far a policy's answers are from the unpruned model's, question by question.

    Attributes:
        first_token: (B,) KL(unpruned || pruned) at the first token of the answer, nats.
        teacher_forced: (B,) mean over the unpruned model's own greedy answer, its end included.
        same: (B,) bool, whether the greedy answer is that of the unpruned model, token for token.
    """

    first_token: Tensor
    teacher_forced: Tensor
    same: Tensor


class Entered:
    """A batch whose visual tokens are chosen once; what the LLM then does with them may vary.

    Args:
        batch: the questions, teacher-forced; with the forward objective.
        base: selects before the LLM alone.
        budget: its own.
    """

    @torch.no_grad()
    def __init__(self, batch: Batch, base: Pruner, budget: Budget) -> None:
        self.batch, adapter, prepared = batch, batch.adapter, batch.prepared
        self.pruned = batch.session.prune_inputs(
            prepared.inputs, base, budget, prepared.questions, encoded=batch.encoded
        )
        everything = Operations(torch.ones(adapter.spec.llm.layers, 3, 1, dtype=torch.bool))
        visual = adapter.placeholders(self.pruned.inputs["input_ids"])
        self.prompt = prompt_tokens((), visual, self.pruned.layout, self.pruned.kept, self.pruned.chosen, everything)
        last = batch.counts.shape[1]
        self.replay = Replay(adapter.model, batch.extended(self.pruned), self.prompt, last)

    def distances(self, operations: Operations) -> Distances:
        """From the unpruned model; only the layers from the first that the plan changes on are run."""
        unpruned, counts = self.batch.replay.logits, self.batch.counts
        logits = self.replay.under(operations)
        same = (logits.argmax(-1) == unpruned.argmax(-1)) | ~counts
        return Distances(kl(unpruned[:, :1], logits[:, :1], counts[:, :1]), kl(unpruned, logits, counts), same.all(1))

    def answers(self, operations: Operations, max_new_tokens: int) -> list[str]:
        """Greedy ones, of at most so many tokens."""
        pruned = dataclasses.replace(self.pruned, inside=InsidePlan((), self.prompt, operations.active))
        return self.batch.session.generate(pruned, max_new_tokens=max_new_tokens).output
