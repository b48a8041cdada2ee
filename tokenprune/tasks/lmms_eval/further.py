"""Metrics beside lmms-eval's own: what other harnesses read in the same answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from tokenprune.core.sample import Sample
from tokenprune.tasks import readings

Answers = Sequence[tuple[Sample, str]]


def further_metrics(task: str, found: Mapping[str, float], answers: Answers) -> dict[str, float]:
    """Metrics of a benchmark by name, after whose rule they are called.

    Args:
        task: of lmms-eval.
        found: its metrics.
        answers: in the order of the rows.
    """
    if not answers:
        return {}
    if task.startswith("pope"):
        return _pope(answers)
    if task == "mme":
        return _mme(found, answers)
    if task == "gqa":
        right = [readings.gqa_llava(answer) == sample.answer.lower() for sample, answer in answers]
        return {"gqa_accuracy_llava": fmean(right)}
    if task in ("scienceqa", "scienceqa_img"):
        right = [readings.letter_llava(answer) == sample.answer for sample, answer in answers]
        return {"scienceqa_accuracy_llava": fmean(right)}
    return {}


def _pope(answers: Answers) -> dict[str, float]:
    """F1 in three readings, LLaVA's also as papers average it over the three categories; and how often yes is said."""
    pairs = [(sample.answer.lower().strip(), answer) for sample, answer in answers]
    found = {f"pope_f1_{each.harness}": readings.yes_no_f1(pairs, each) for each in readings.POPE_READINGS}
    llava = next(each for each in readings.POPE_READINGS if each.harness == "llava")
    kinds = sorted({sample.kind for sample, _ in answers})
    by_kind = [
        readings.yes_no_f1(
            [pair for (sample, _), pair in zip(answers, pairs, strict=True) if sample.kind == kind], llava
        )
        for kind in kinds
    ]
    said = [answer for _, answer in answers]
    return {
        **found,
        "pope_f1_llava_mean_of_categories": fmean(by_kind),
        "pope_answered_yes": readings.yes_ratio(said, readings.yes_no_vlmevalkit),
    }


def _mme(found: Mapping[str, float], answers: Answers) -> dict[str, float]:
    """The sum of perception and cognition, and both as MME's own tool reads them: accuracy and pairs, by category."""
    own = {"mme_total": found.get("mme_perception_score", 0.0) + found.get("mme_cognition_score", 0.0)}
    right: dict[str, dict[str, list[bool]]] = {}
    for sample, answer in answers:
        units = right.setdefault(sample.kind, {})
        units.setdefault(sample.unit, []).append(readings.yes_no_mme(answer) == sample.answer.lower())
    scores = {kind: _pairs(list(units.values())) for kind, units in right.items()}
    cognition = sum(score for kind, score in scores.items() if kind in COGNITION)
    perception = sum(score for kind, score in scores.items() if kind not in COGNITION)
    return own | {"mme_perception_llava": perception, "mme_cognition_llava": cognition}


COGNITION = frozenset({"commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"})


def _pairs(units: Sequence[Sequence[bool]]) -> float:
    """Percent of right answers and percent of pairs with both right, added."""
    return 100 * fmean(word for unit in units for word in unit) + 100 * fmean(all(unit) for unit in units)
