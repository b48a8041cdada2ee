"""The same answers as several harnesses read them, side by side: they give each another score.

It is made of the metrics that a task adds for other harnesses' rules; see ``tasks.lmms_eval.further``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenprune.report.document import Block, Heading, Paragraph, Table
from tokenprune.report.numbers import percent
from tokenprune.report.rows import Row, Section


@dataclass(frozen=True)
class Score:
    """A column of the table.

    Attributes:
        metric: its name in records.
        head: of the column.
        scale: from the metric to what papers print.
    """

    metric: str
    head: str
    scale: float = 100.0


# By a metric that is there if the benchmark is.
BENCHMARKS: dict[str, tuple[Score, ...]] = {
    "pope_f1_llava": (
        Score("pope_f1_lmms_eval", "F1, lmms-eval"),
        Score("pope_f1_llava", "F1, LLaVA"),
        Score("pope_f1_vlmevalkit", "F1, VLMEvalKit"),
        Score("pope_f1_llava_mean_of_categories", "F1, LLaVA, mean of categories"),
        Score("pope_answered_yes", "answers that say yes %"),
    ),
    "mme_perception_llava": (
        Score("mme_perception_score", "perception, lmms-eval", 1.0),
        Score("mme_perception_llava", "perception, LLaVA", 1.0),
        Score("mme_cognition_score", "cognition, lmms-eval", 1.0),
        Score("mme_cognition_llava", "cognition, LLaVA", 1.0),
        Score("mme_total", "sum, lmms-eval", 1.0),
    ),
    "gqa_accuracy_llava": (
        Score("exact_match", "accuracy, lmms-eval"),
        Score("gqa_accuracy_llava", "accuracy, LLaVA"),
    ),
    "scienceqa_accuracy_llava": (
        Score("exact_match", "accuracy, lmms-eval"),
        Score("scienceqa_accuracy_llava", "accuracy, LLaVA"),
    ),
}
SAID = (
    "One set of answers, read by the rules of several harnesses; what each rule is, and which papers use it, is in "
    "docs/benchmarks.md. Compare a published number with the column of its harness alone. Unparsed are answers that "
    "lmms-eval's rule takes for neither yes nor no, or for no option; F1 of lmms-eval leaves them out."
)


def readings(section: Section) -> list[Block]:
    """Scores in all readings; nothing if the task has one reading.

    Args:
        section: whose rows are shown.
    """
    known = {name for row in section.done for name in row.any.metrics.get("scores") or {}}
    columns = next((scores for marker, scores in BENCHMARKS.items() if marker in known), ())
    if not columns:
        return []
    header = ["pruner", "visual tokens", *(score.head for score in columns), "unparsed %"]
    rows = [
        [row.label, f"{row.number('average_tokens'):.4g}", *_scores(row, columns), percent(row.mean("unparsed"))]
        for row in section.done
    ]
    return [
        Heading("How answers are read"),
        Paragraph(SAID),
        Table(f"The same answers in several readings, {section.title}", header, rows),
    ]


def _scores(row: Row, columns: Sequence[Score]) -> list[str]:
    """The cells of a row, means over its seeds."""
    cells = []
    for score in columns:
        values = [(record.metrics.get("scores") or {}).get(score.metric) for record in row.records]
        found = [score.scale * value for value in values if value is not None]
        cells.append(f"{sum(found) / len(found):.1f}" if found else "-")
    return cells
