"""One cell: a pruner at a budget answers all questions, and its cost is measured."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.cache_argument import cache_of
from tokenprune.adapters.inputs import PrunedInputs
from tokenprune.build import Cell
from tokenprune.metrics import flops
from tokenprune.metrics.evidence import evidence_kept, evidence_tokens
from tokenprune.metrics.latency import Stages, compare, timed
from tokenprune.metrics.memory import kv_cache_bytes_by_layer
from tokenprune.metrics.retention import standard_error
from tokenprune.tasks.base import Task
from tokenprune.trace import stage_traces
from tokenprune.types import ModelSpec, OperationPlan, Sample

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
            One line a question: what was asked, answered and kept. ``stages`` tells for each stage which visual tokens
            were still alive (``kept``) and how many with those that were appended (``tokens``).
        """
        pruned = self._prune(cell, batch)
        answers = self.adapter.generate(pruned, max_new_tokens=self.max_new_tokens)
        traces, totals = stage_traces(pruned, len(batch)), pruned.layout.free_tokens()
        lengths, grids = pruned.inputs["attention_mask"].sum(1).tolist(), pruned.layout.row_grids()
        entered = pruned.entered
        lines = []
        for row, (sample, answer) in enumerate(zip(batch, answers, strict=True)):
            stages = [{"stage": str(t.stage), "kept": t.keep[row], "tokens": t.counts[row]} for t in traces]
            kept, grid = traces[-1].keep[row] if traces else list(range(totals[row])), grids[row]
            evidence = evidence_tokens(sample.boxes, sample.image.size, grid) if grid else []
            lines.append(
                {
                    "sample": sample.id,
                    "kind": sample.kind,
                    "question": sample.question,
                    "truth": sample.answer,
                    "answer": answer,
                    "correct": self.task.score(sample, answer),
                    "visual_tokens": totals[row],
                    "text_tokens": lengths[row] - entered[row],
                    "grid": grid and list(grid),
                    "evidence_kept": evidence_kept(kept, evidence),
                    "stages": stages,
                }
            )
        return lines

    def measure(self, cell: Cell, batch: Sequence[Sample], repeats: int) -> dict[str, Any]:
        """Time the prefill of a batch next to the unpruned one, and weigh the cache of one question.

        Args:
            cell: what prunes.
            batch: questions; more than ``TIMING_BATCH`` are cut off.
            repeats: timed pairs; with 0 no time is measured.
        """
        alone = kv_cache_bytes_by_layer(cache_of(self.adapter.prefill(self._prune(cell, batch[:1]))))
        batch = batch[:TIMING_BATCH]
        measured: dict[str, Any] = {"kv_cache_bytes": sum(alone), "kv_cache_bytes_by_layer": alone}
        if repeats:
            unpruned = dataclasses.replace(cell, pruner=None, budget=None)
            times = compare(lambda: self._stages(unpruned, batch), lambda: self._stages(cell, batch), repeats=repeats)
            measured["prefill_time_ratio"] = times.ratio
            measured |= {f"{stage}_seconds": value for stage, value in dataclasses.asdict(times.stages).items()}
            measured["timing_batch"] = len(batch)
        return measured

    def _stages(self, cell: Cell, batch: Sequence[Sample]) -> Stages:
        pruned = self._prune(cell, batch)
        _, prefill = timed(lambda: self.adapter.prefill(pruned), self.adapter.model.device)
        inside = pruned.inside.seconds["selection"] if pruned.inside else 0.0
        return Stages(pruned.seconds["vision"], pruned.seconds["selection"] + inside, prefill - inside)

    def _prune(self, cell: Cell, batch: Sequence[Sample]) -> PrunedInputs:
        prepared = self.adapter.prepare(batch)
        return self.adapter.prune_inputs(prepared.inputs, cell.pruner, cell.budget, prepared.questions)


def summarise(cell: Cell, lines: Sequence[Line], spec: ModelSpec) -> dict[str, Any]:
    """Metrics that follow from the answers and the model's sizes."""
    accuracy = fmean(line["correct"] for line in lines)
    kinds = sorted({line["kind"] for line in lines})
    by_kind = {kind: fmean(line["correct"] for line in lines if line["kind"] == kind) for kind in kinds}
    evidence = [line["evidence_kept"] for line in lines if line["evidence_kept"] is not None]
    grids = {tuple(line["grid"] or ()) for line in lines}
    plans = Counter(
        (tuple(stage["tokens"] for stage in line["stages"]), line["visual_tokens"], line["text_tokens"])
        for line in lines
    )
    weighed = [(_plan(cell, spec, alive, total), text, n) for (alive, total, text), n in plans.items()]
    return {
        "questions": len(lines),
        "accuracy": accuracy,
        "accuracy_standard_error": standard_error(accuracy, len(lines)),
        "accuracy_by_kind": by_kind if kinds != [""] else {},
        "visual_tokens": fmean(line["visual_tokens"] for line in lines),
        "kept_tokens": fmean(
            line["stages"][-1]["tokens"] if line["stages"] else line["visual_tokens"] for line in lines
        ),
        "average_tokens": sum(plan.mean_tokens * n for plan, _, n in weighed) / len(lines),
        "text_tokens": fmean(line["text_tokens"] for line in lines),
        "evidence_kept": fmean(evidence) if evidence else None,
        "grid": list(grids.pop()) or None if len(grids) == 1 else None,
        "llm_prefill_flops": sum(flops.llm_prefill_flops(spec, plan, text) * n for plan, text, n in weighed)
        / len(lines),
        "lm_head_flops": flops.lm_head_flops(spec),
        "vision_flops": flops.vision_flops(spec),
        "projector_flops": flops.projector_flops(spec),
    }


def _plan(cell: Cell, spec: ModelSpec, alive: Sequence[int], total: int) -> OperationPlan:
    """What ran for a question, from the visual tokens that really went on from each stage."""
    if cell.pruner is None:
        return OperationPlan.drop_at(spec, (), (), total)
    return cell.pruner.plan(spec, alive, total)
