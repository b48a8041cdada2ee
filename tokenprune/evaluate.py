"""One cell: a pruner at a budget answers all questions, and its cost is measured."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.inputs import PrunedInputs
from tokenprune.build import Cell
from tokenprune.metrics import flops
from tokenprune.metrics.evidence import evidence_kept, evidence_tokens
from tokenprune.metrics.latency import Stages, compare, timed
from tokenprune.metrics.memory import kv_cache_bytes
from tokenprune.metrics.retention import standard_error
from tokenprune.tasks.base import Task
from tokenprune.types import PRE_LLM, ModelSpec, OperationPlan, Sample

TIMING_BATCH = 8  # questions whose prefill is timed: enough to fill two cores, few enough to repeat
Line = dict[str, Any]


@dataclass(frozen=True)
class Evaluator:
    """Answers questions and measures costs with one loaded model; keeps nothing between cells.

    Attributes:
        adapter: the model.
        task: scores the answers.
        max_new_tokens: longest answer, tokens.
    """

    adapter: ModelAdapter
    task: Task
    max_new_tokens: int

    def answer(self, cell: Cell, batch: Sequence[Sample]) -> list[Line]:
        """Answer a batch of questions.

        Returns:
            One line a question: what was asked, answered and kept. ``kept`` is None if nothing was pruned.
        """
        pruned = self._prune(cell, batch)
        answers = self.adapter.generate(pruned.inputs, max_new_tokens=self.max_new_tokens)
        grid = self.adapter.grid()
        kept: dict[int, list[int]] = {}
        if pruned.selection is not None:
            kept = dict(zip(pruned.rows.tolist(), pruned.selection.keep.tolist(), strict=True))
        lengths = pruned.inputs["attention_mask"].sum(1).tolist()
        lines = []
        for row, (sample, answer) in enumerate(zip(batch, answers, strict=True)):
            tokens = kept.get(row, list(range(pruned.num_tokens)))
            evidence = evidence_tokens(sample.boxes, sample.image.size, grid) if grid else []
            lines.append(
                {
                    "sample": sample.id,
                    "kind": sample.kind,
                    "question": sample.question,
                    "truth": sample.answer,
                    "answer": answer,
                    "correct": self.task.score(sample, answer),
                    "text_tokens": lengths[row] - len(tokens),
                    "kept_tokens": len(tokens),
                    "evidence_kept": evidence_kept(tokens, evidence),
                    "kept": kept.get(row),
                }
            )
        return lines

    def measure(self, cell: Cell, batch: Sequence[Sample], repeats: int) -> dict[str, float | None]:
        """Time the prefill of a batch next to the unpruned one, and weigh its cache.

        Args:
            cell: what prunes.
            batch: questions; more than ``TIMING_BATCH`` are cut off.
            repeats: timed pairs; with 0 no time is measured.
        """
        batch = batch[:TIMING_BATCH]
        output = self.adapter.prefill(self._prune(cell, batch).inputs)
        measured: dict[str, float | None] = {"kv_cache_bytes": kv_cache_bytes(output.past_key_values) / len(batch)}
        if repeats:
            unpruned = dataclasses.replace(cell, pruner=None, budget=None)
            times = compare(lambda: self._stages(unpruned, batch), lambda: self._stages(cell, batch), repeats=repeats)
            measured["prefill_time_ratio"] = times.ratio
            measured |= {f"{stage}_seconds": value for stage, value in dataclasses.asdict(times.stages).items()}
            measured["timing_batch"] = len(batch)
        return measured

    def _stages(self, cell: Cell, batch: Sequence[Sample]) -> Stages:
        pruned = self._prune(cell, batch)
        _, prefill = timed(lambda: self.adapter.prefill(pruned.inputs), self.adapter.model.device)
        return Stages(**pruned.seconds, prefill=prefill)

    def _prune(self, cell: Cell, batch: Sequence[Sample]) -> PrunedInputs:
        prepared = self.adapter.prepare(batch)
        return self.adapter.prune_inputs(prepared.inputs, cell.pruner, cell.budget, prepared.questions)


def summarise(cell: Cell, lines: Sequence[Line], spec: ModelSpec) -> dict[str, Any]:
    """Metrics that follow from the answers and the model's sizes."""
    accuracy = fmean(line["correct"] for line in lines)
    kinds = sorted({line["kind"] for line in lines})
    by_kind = {kind: fmean(line["correct"] for line in lines if line["kind"] == kind) for kind in kinds}
    evidence = [line["evidence_kept"] for line in lines if line["evidence_kept"] is not None]
    return {
        "questions": len(lines),
        "accuracy": accuracy,
        "accuracy_standard_error": standard_error(accuracy, len(lines)),
        "accuracy_by_kind": by_kind if kinds != [""] else {},
        "visual_tokens": spec.visual_tokens,
        "kept_tokens": fmean(line["kept_tokens"] for line in lines),
        "text_tokens": fmean(line["text_tokens"] for line in lines),
        "evidence_kept": fmean(evidence) if evidence else None,
        "llm_prefill_flops": _mean_flops(cell, lines, spec),
        "lm_head_flops": flops.lm_head_flops(spec),
        "vision_flops": flops.vision_flops(spec),
        "projector_flops": flops.projector_flops(spec),
    }


def _mean_flops(cell: Cell, lines: Sequence[Line], spec: ModelSpec) -> float:
    """FLOPs of the LLM's layers in prefill, mean over the questions, whose texts differ in length."""
    total = spec.visual_tokens
    sizes = Counter((line["kept_tokens"], line["text_tokens"]) for line in lines)
    plan = cell.pruner.plan if cell.pruner else _keep_all
    costs = sum(n * flops.llm_prefill_flops(spec, plan(spec, keep, total), text) for (keep, text), n in sizes.items())
    return costs / len(lines)


def _keep_all(spec: ModelSpec, keep: int, total: int) -> OperationPlan:
    return OperationPlan.drop_at(spec, PRE_LLM, keep, total)
