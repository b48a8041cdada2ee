"""A batch of questions, answered by one cell after another, and what a cell costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokenprune.adapters.cache_argument import cache_of
from tokenprune.adapters.inputs import Prepared
from tokenprune.core.sample import Sample
from tokenprune.core.signals import Signal
from tokenprune.core.turn import picture_size
from tokenprune.costs.latency import Stages, compare, time_call
from tokenprune.costs.memory import kv_cache_bytes_by_layer
from tokenprune.engine.prompt.encoded import Encoded
from tokenprune.engine.prompt.shorten import PrunedInputs
from tokenprune.engine.session import Session
from tokenprune.engine.trace import stage_traces
from tokenprune.functional.evidence import evidence_kept, evidence_tokens
from tokenprune.pruners.none import NoPruning
from tokenprune.sweeps.build import Cell
from tokenprune.sweeps.scores import score_answer
from tokenprune.tasks.base import Task

TIMING_BATCH = 8  # questions whose prefill is timed: enough to fill two cores, few enough to repeat
Line = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions whose images are encoded.

    Attributes:
        samples: the questions.
        prepared: the questions as a model takes them.
        encoded: their images; signals of them are made when a pruner first needs them, and kept. None for questions
            about nothing that is shown.
    """

    samples: Sequence[Sample]
    prepared: Prepared
    encoded: Encoded | None


@dataclass(frozen=True)
class Evaluator:
    """Answers questions and measures costs with one loaded model; keeps nothing between calls.

    Attributes:
        session: with the model.
        task: scores the answers.
        max_new_tokens: longest answer, tokens.
    """

    session: Session
    task: Task
    max_new_tokens: int

    @torch.no_grad()
    def ask(self, samples: Sequence[Sample], cells: Iterable[Cell]) -> Asked:
        """Prepare questions and encode their images, once for all cells that will answer them.

        Args:
            samples: the questions.
            cells: tell which signals the vision tower must give.
        """
        samples = [self.session.seen(sample) for sample in samples]
        prepared = self.session.prepare(samples)
        shown = samples[0].turn.shape  # a batch is of one kind
        return Asked(samples, prepared, self.session.encode(prepared.inputs, self._requires(cells)) if shown else None)

    def _requires(self, cells: Iterable[Cell]) -> frozenset[Signal]:
        steps = [step for cell in cells for step in cell.pruner.steps(self.session.adapter.spec)]
        return frozenset().union(*(step.selector.requires for step in steps if not step.stage.inside))

    def answer(self, cell: Cell, asked: Asked) -> list[Line]:
        """Let a cell answer questions.

        Returns:
            One line a question: what was asked, answered and kept. ``stages`` tells for each stage the live tokens
            (``kept``) and their number with those that were appended (``tokens``).
        """
        if asked.encoded is None:
            return self._answer_text(cell, asked)
        pruned = self._prune(cell, asked)
        ran = self.session.generate(pruned, max_new_tokens=self.max_new_tokens)
        traces, totals = stage_traces(pruned, ran.stages, len(asked.samples)), pruned.layout.free_tokens()
        lengths, grids = pruned.inputs["attention_mask"].sum(1).tolist(), pruned.layout.row_grids()
        entered = pruned.entered
        lines = []
        for row, (sample, answer) in enumerate(zip(asked.samples, ran.output, strict=True)):
            stages = [{"stage": str(t.stage), "kept": t.keep[row], "tokens": t.counts[row]} for t in traces]
            kept, grid = traces[-1].keep[row] if traces else list(range(totals[row])), grids[row]
            size = picture_size(sample.turn)
            evidence = evidence_tokens(sample.boxes, size, grid) if grid and size else []
            lines.append(
                {
                    **self._said(sample, answer),
                    "visual_tokens": totals[row],
                    "text_tokens": lengths[row] - entered[row],
                    "grid": grid and list(grid),
                    "evidence_kept": evidence_kept(kept, evidence),
                    "stages": stages,
                }
            )
        return lines

    def _answer_text(self, cell: Cell, asked: Asked) -> list[Line]:
        """The lines of questions about nothing that is shown: whatever the cell prunes, it has nothing to prune."""
        inputs = asked.prepared.inputs
        answers = self.session.generate(inputs, max_new_tokens=self.max_new_tokens).output
        lengths = inputs["attention_mask"].sum(1).tolist()
        stages = [str(stage) for stage in cell.pruner.stages(self.session.adapter.spec)]
        return [
            {
                **self._said(sample, answer),
                "visual_tokens": 0,
                "text_tokens": length,
                "grid": None,
                "evidence_kept": None,
                "stages": [{"stage": stage, "kept": [], "tokens": 0} for stage in stages],
            }
            for sample, answer, length in zip(asked.samples, answers, lengths, strict=True)
        ]

    def _said(self, sample: Sample, generated: str) -> Line:
        answer = self.task.finish(generated)
        return {
            "sample": sample.id,
            "kind": sample.kind,
            "unit": sample.unit,
            "question": sample.question,
            "truth": sample.answer,
            "answer": answer,
            **score_answer(self.task, sample, answer),
        }

    def measure(self, cell: Cell, batch: Sequence[Sample], repeats: int) -> dict[str, Any]:
        """Time the prefill of a batch next to the unpruned one, and weigh the cache of one question.

        Args:
            cell: what prunes.
            batch: questions; those that show the kind of thing that the first with a picture or video shows are used,
                and of these ``TIMING_BATCH`` at most.
            repeats: timed pairs; with 0 no time is measured.
        """
        batch = _alike(batch)
        one = self.ask(batch[:1], [cell])
        alone = kv_cache_bytes_by_layer(cache_of(self.session.prefill(self._prune(cell, one)).output))
        measured: dict[str, Any] = {"kv_cache_bytes": sum(alone), "kv_cache_bytes_by_layer": alone}
        if repeats:
            unpruned = dataclasses.replace(cell, pruner=NoPruning(), budget=None)
            times = compare(lambda: self._stages(unpruned, batch), lambda: self._stages(cell, batch), repeats=repeats)
            measured["prefill_time_ratio"] = times.ratio
            measured |= {f"{stage}_seconds": value for stage, value in dataclasses.asdict(times.stages).items()}
            measured["timing_batch"] = len(batch)
        return measured

    @torch.no_grad()
    def _stages(self, cell: Cell, batch: Sequence[Sample]) -> Stages:
        batch = [self.session.seen(sample) for sample in batch]
        prepared = self.session.prepare(batch)  # not encoded yet, so that all of it is timed
        pruned = self.session.prune_inputs(prepared.inputs, cell.pruner, cell.budget, prepared.questions, samples=batch)
        ran, prefill = time_call(lambda: self.session.prefill(pruned), self.session.adapter.device)
        return Stages(pruned.seconds["vision"], pruned.seconds["selection"] + ran.seconds, prefill - ran.seconds)

    @torch.no_grad()
    def _prune(self, cell: Cell, asked: Asked) -> PrunedInputs:
        inputs, questions = asked.prepared.inputs, asked.prepared.questions
        return self.session.prune_inputs(
            inputs, cell.pruner, cell.budget, questions, encoded=asked.encoded, samples=asked.samples
        )


def _alike(samples: Sequence[Sample]) -> list[Sample]:
    """The first samples that show as many things of the same kinds as the first that shows anything."""
    kinds = [tuple(kind for kind, *_ in sample.turn.shape) for sample in samples]
    wanted = next(filter(None, kinds))
    return [sample for sample, shown in zip(samples, kinds, strict=True) if shown == wanted][:TIMING_BATCH]
