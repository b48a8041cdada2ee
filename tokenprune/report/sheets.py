"""The numbers of a report as CSV files, not rounded, one row a value where kinds or pairs are many."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from tokenprune.report.comparison import Pair
from tokenprune.report.numbers import budget
from tokenprune.report.rows import Row, Section

METRICS = (
    *("accuracy", "accuracy_standard_error", "retention", "evidence_kept", "visual_tokens", "kept_tokens"),
    *("average_tokens", "text_tokens", "llm_prefill_flops", "kv_cache_bytes", "prefill_time_ratio"),
    *("vision_seconds", "selection_seconds", "prefill_seconds", "score", "unparsed", "changed"),
)
WHERE = ("model", "task", "detail")


def results(sections: Sequence[Section]) -> str:
    """CSV of the results, a row a pruner and budget: means over the seeds, and deviations where there are several."""
    header = [*WHERE, "pruner", "budget", "status", "seeds", "questions"]
    header += [column for metric in METRICS for column in (metric, f"{metric}_sd")]
    return _text([*header, "code"], (_result(section, row) for section in sections for row in section.rows))


def _result(section: Section, row: Row) -> list[Any]:
    status = "failed" if not row.records else "partly failed" if row.failed else "ok"
    numbers = [value for metric in METRICS for value in (row.mean(metric), row.deviation(metric))]
    codes = sorted({record.provenance.code for record in (*row.records, *row.failed)})
    questions = row.mean("questions")
    first = [row.label, budget(row.any.budget), status, len(row.records), questions and int(questions)]
    return [*_where(section), *first, *numbers, " ".join(codes)]


def kinds(sections: Sequence[Section]) -> str:
    """CSV of the accuracy by kind, a row a pruner, budget and kind of question."""
    header = [*WHERE, "pruner", "budget", "average_tokens", "kind", "seeds", "accuracy", "accuracy_sd"]
    return _text(header, (line for section in sections for row in section.done for line in _kinds(section, row)))


def _kinds(section: Section, row: Row) -> Iterable[list[Any]]:
    by = "accuracy_by_kind"
    for kind in sorted({kind for record in row.records for kind in record.metrics[by]}):
        first = [*_where(section), row.label, budget(row.any.budget), row.mean("average_tokens"), kind]
        yield [*first, len(row.values(by, kind)), row.mean(by, kind), row.deviation(by, kind)]


def pairs(found: Iterable[tuple[Section, Sequence[Pair]]]) -> str:
    """CSV of the comparisons, a row a pair of pruners."""
    header = [*WHERE, "a", "a_budget", "a_seeds", "b", "b_budget", "b_seeds", "difference", "low", "high"]
    header += ["a_only", "b_only", "p", "p_holm", "a_flops", "b_flops"]
    return _text(header, ([*_where(section), *_pair(pair)] for section, tested in found for pair in tested))


def _pair(pair: Pair) -> list[Any]:
    rows = [
        value for row in (pair.first, pair.second) for value in (row.label, budget(row.any.budget), len(row.records))
    ]
    test, flops = pair.test, [row.mean("llm_prefill_flops") for row in (pair.first, pair.second)]
    return [*rows, test.difference, test.low, test.high, test.first_only, test.second_only, test.p, pair.holm, *flops]


def overlaps(rows: Iterable[Sequence[Any]]) -> str:
    """CSV of the overlaps, a row a budget of two pruners whose kept tokens are compared."""
    return _text([*WHERE, "a", "b", "a_tokens", "b_tokens", "images", "both", "a_only", "b_only", "overlap"], rows)


def _where(section: Section) -> list[str]:
    return [section.model, section.task, section.detail]


def _text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return out.getvalue()
