"""How far a pruned model's answers are from the unpruned model's, for many policies on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.core.budget import Budget
from tokenprune.core.plan import Operations
from tokenprune.core.sample import Sample
from tokenprune.core.signals import Signal
from tokenprune.engine.decoder.hooks import InsideLLM
from tokenprune.engine.decoder.replay import Replay
from tokenprune.engine.prompt.pruned import prompt_tokens
from tokenprune.engine.prompt.shorten import PrunedInputs, fresh
from tokenprune.engine.session import Session
from tokenprune.engine.stopwatch import now
from tokenprune.functional.divergence import kl
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.none import NoPruning

Varied = tuple[str, int]  # a parameter of a policy and its value, all else unpruned


@dataclass(frozen=True)
class Objective:
    """How divergence is measured.

    Attributes:
        teacher_forced: mean over the unpruned model's own greedy answer, up to its end, instead of its first token.
        reverse: KL(pruned || unpruned) instead of KL(unpruned || pruned).
        update_only: see ``Depths``.
        max_new_tokens: longest answer, tokens.
    """

    teacher_forced: bool = False
    reverse: bool = False
    update_only: bool = False
    max_new_tokens: int = 16


@dataclass(frozen=True)
class Measured:
    """Divergences of a batch of questions, for several policies.

    Attributes:
        divergence: of each policy, nats, summed over the questions.
        seconds: that all policies took together, with the unpruned forward.
        forward_seconds: of one unpruned forward.
    """

    divergence: dict[Varied, float]
    seconds: float
    forward_seconds: float


class Batch:
    """Questions, encoded once, with the unpruned model's answers.

    Args:
        session: with the model.
        samples: the questions.
        objective: what is measured.
        requires: signals that pruners will ask for before the LLM.
    """

    @torch.no_grad()
    def __init__(
        self, session: Session, samples: Sequence[Sample], objective: Objective, requires: frozenset[Signal]
    ) -> None:
        self.session, self.adapter, self.objective = session, session.adapter, objective
        adapter = self.adapter
        self.prepared = session.prepare(samples)
        self.encoded = session.encode(self.prepared.inputs, requires)
        self.whole = session.prune_inputs(self.prepared.inputs, NoPruning(), encoded=self.encoded)
        self.answers, self.counts = self._answers()
        everything = Operations(torch.ones(adapter.spec.llm.layers, 3, 1, dtype=torch.bool))
        visual = adapter.placeholders(self.whole.inputs["input_ids"])
        prompt = prompt_tokens((), visual, self.encoded.layout, self.whole.kept, operations=everything)
        start = now(adapter.device)
        self.replay = Replay(adapter.model, self.extended(self.whole), prompt, self.counts.shape[1])
        self.forward_seconds = now(adapter.device) - start

    def depths(self, varied: Varied) -> Tensor:
        """(B,) divergence in nats if one depth is varied alone."""
        name, value = varied
        spec, update_only = self.adapter.spec, self.objective.update_only
        whole = Depths(attention=spec.llm.layers, mlp=spec.llm.layers, keep=1, update_only=update_only)
        changed = {"attention": whole.attention, "mlp": whole.mlp, "query": None, name: value}
        depths = Depths(keep=1, update_only=update_only, **changed).normalised(spec.llm.layers)  # type: ignore[arg-type]
        return self._kl(self.replay.under(Operations(depths.plan(spec, 1).active[..., 1:])))

    @torch.no_grad()
    def pruned(self, pruner: Pruner, budget: Budget) -> Tensor:
        """(B,) divergence in nats of a pruner at a budget; its signals are among those that the images have."""
        inputs, questions = self.prepared.inputs, self.prepared.questions
        pruned = self.session.prune_inputs(inputs, pruner, budget, questions, encoded=self.encoded)
        with InsideLLM(self.adapter.model, pruned.inside) if pruned.inside else nullcontext():
            arguments = self.extended(pruned)
            output = self.adapter.model(**arguments, use_cache=False, logits_to_keep=self.counts.shape[1])
        return self._kl(output.logits)

    def extended(self, pruned: PrunedInputs) -> dict[str, Any]:
        """Arguments of the model with the answers after the prompts; padding in them is seen by nothing that counts.

        Args:
            pruned: of these questions.
        """
        inputs, more = fresh(pruned.inputs), self.answers.shape[1]
        last = inputs["position_ids"][..., -1:]
        added: dict[str, Tensor] = {
            "input_ids": self.answers,
            "attention_mask": torch.ones_like(self.answers),
            "position_ids": last + torch.arange(1, more + 1, device=last.device),
        }
        types = {"token_type_ids": self.adapter.answer_type, "mm_token_type_ids": 0}
        added |= {name: torch.full_like(self.answers, kind) for name, kind in types.items() if name in inputs}
        return inputs | {name: torch.cat([inputs[name], x], -1) for name, x in added.items()}

    def _kl(self, logits: Tensor) -> Tensor:
        return kl(self.replay.logits, logits, self.counts, reverse=self.objective.reverse)

    def _answers(self) -> tuple[Tensor, Tensor]:
        """(B, T - 1) answer tokens that are given to the model, and (B, T) bool, which positions count."""
        batch, model = len(self.whole.inputs["input_ids"]), self.adapter.model
        if not self.objective.teacher_forced:
            none = torch.zeros(batch, 0, dtype=torch.long, device=self.adapter.device)
            return none, torch.ones(batch, 1, dtype=torch.bool, device=self.adapter.device)
        shown = self.whole.inputs["input_ids"].shape[1]
        options = {"do_sample": False, "max_new_tokens": self.objective.max_new_tokens}
        tokens = model.generate(**fresh(self.whole.inputs), **options)[:, shown:]
        ends = torch.tensor(_ends(model), device=tokens.device)
        over = torch.isin(tokens, ends).long().cumsum(1)
        ended = torch.cat([torch.zeros_like(over[:, :1]), over[:, :-1]], 1) > 0
        return tokens[:, :-1], ~ended


def measure(
    session: Session, samples: Sequence[Sample], objective: Objective, base: Pruner, points: Sequence[Varied]
) -> Measured:
    """Measure divergence with each parameter varied alone, on some questions.

    Args:
        session: with the model.
        samples: the questions.
        objective: what is measured.
        base: which visual tokens stay where their number is varied.
        points: ``("attention", 8)``, ``("query", 4)``, ``("mlp", 6)`` or ``("tokens", 64)`` and so on.
    """
    batch = Batch(session, samples, objective, early_signals(session, base))
    start, divergence = now(session.adapter.device), {}
    for name, value in points:
        if name == "tokens":
            divergence[name, value] = float(batch.pruned(base, Budget(keep_tokens=value)).sum())
        else:
            divergence[name, value] = float(batch.depths((name, value)).sum())
    seconds = now(session.adapter.device) - start + batch.forward_seconds
    return Measured(divergence, seconds, batch.forward_seconds)


def early_signals(session: Session, pruner: Pruner) -> frozenset[Signal]:
    """The signals that a pruner asks for before the LLM."""
    steps = [step for step in session.check_pruner(pruner) if not step.stage.inside]
    return steps[0].selector.requires if steps else frozenset()


def _ends(model: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    return [-1] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
