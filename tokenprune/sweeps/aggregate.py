"""The totals of a cell's answers that its metrics need, and no more: a sweep has hundreds of thousands of answers."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from math import fsum
from statistics import fmean
from typing import Any

from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage
from tokenprune.costs import flops
from tokenprune.sweeps.build import Cell
from tokenprune.sweeps.retention import standard_error


class Totals:
    """Answers of one cell. Its metrics do not depend on the order in which they come, to the last bit."""

    def __init__(self) -> None:
        self._answers: dict[str, bytes] = {}  # a hash of each
        self._unparsed = 0
        self._correct: dict[str, array[float]] = {}
        self._evidence = array("d")
        self._grids: set[tuple[int, ...]] = set()
        self._plans: Counter[tuple[tuple[int, ...], int, int]] = Counter()

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a line of ``samples.jsonl``; one whose question is answered already must not be given."""
        said = hashlib.blake2b(line["answer"].encode(errors="surrogatepass"), digest_size=8).digest()
        self._answers[sys.intern(line["sample"])] = said
        self._unparsed += line["unparsed"]
        if line["correct"] is not None:
            self._correct.setdefault(line["kind"], array("d")).append(line["correct"])
        if line["evidence_kept"] is not None:
            self._evidence.append(line["evidence_kept"])
        self._grids.add(tuple(line["grid"] or ()))
        alive = tuple(stage["tokens"] for stage in line["stages"])
        self._plans[alive, line["visual_tokens"], line["text_tokens"]] += 1

    @property
    def samples(self) -> Set[str]:
        """Ids of the questions that are answered."""
        return self._answers.keys()

    def changed(self, other: Totals) -> float | None:
        """Share of the answers that differ from another cell's; None if they share no question."""
        both = self._answers.keys() & other._answers.keys()
        return sum(self._answers[each] != other._answers[each] for each in both) / len(both) if both else None

    def scores(self) -> dict[str, Any]:
        """Metrics that answers alone decide, by name."""
        by_kind = {kind: fmean(correct) for kind, correct in sorted(self._correct.items())}
        scores = [value for correct in self._correct.values() for value in correct]
        return {
            "questions": len(self.samples),
            "scored": len(scores),
            "accuracy": fsum(scores) / len(scores) if scores else None,
            "accuracy_standard_error": standard_error(scores) if scores else None,
            "accuracy_by_kind": by_kind if list(by_kind) != [""] else {},
            "unparsed": self._unparsed / len(self.samples),
        }

    def metrics(self, cell: Cell, spec: ModelSpec) -> dict[str, Any]:
        """Metrics of the cell by name, from the answers and the model's sizes; FLOPs are means over the questions."""
        number, plans = len(self.samples), self._plans.items()
        prefill = flops.llm_prefill_flops
        # A question about nothing that is shown has nothing to encode.
        lefts = [(left_of_image(cell, spec, alive, total), n) for (alive, total, _), n in plans if total]
        weighed = [(cell.pruner.plan(spec, alive, total), text, n) for (alive, total, text), n in plans]
        return {
            **self.scores(),
            "visual_tokens": sum(total * n for (_, total, _), n in plans) / number,
            "kept_tokens": sum((alive[-1] if alive else total) * n for (alive, total, _), n in plans) / number,
            "average_tokens": fsum(plan.mean_tokens * n for plan, _, n in weighed) / number,
            "text_tokens": sum(text * n for (_, _, text), n in plans) / number,
            "evidence_kept": fmean(self._evidence) if self._evidence else None,
            "grid": list(next(iter(self._grids))) or None if len(self._grids) == 1 else None,
            "llm_prefill_flops": sum(prefill(spec, plan, text) * n for plan, text, n in weighed) / number,
            "lm_head_flops": flops.lm_head_flops(spec),
            "vision_flops": sum(flops.vision_flops(spec, left) * n for left, n in lefts) / number,
            "projector_flops": sum(flops.projector_flops(spec, left) * n for left, n in lefts) / number,
        }


def left_of_image(cell: Cell, spec: ModelSpec, alive: Sequence[int], total: int) -> tuple[tuple[Stage, int], ...]:
    """Visual tokens of one image that are left behind each stage, of a prompt whose images have equal numbers.

    Args:
        cell: whose pruner.
        spec: of the model.
        alive: live tokens of the prompt after each stage.
        total: visual tokens of the prompt.
    """
    stages = zip(cell.pruner.stages(spec), alive, strict=False)
    return tuple((stage, left * spec.visual_tokens // max(1, total)) for stage, left in stages)
