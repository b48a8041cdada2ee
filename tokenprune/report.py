"""From the records of a run to a table, a Markdown report and pictures; nothing is computed again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from tokenprune.errors import DataError
from tokenprune.overlay import draw_kept
from tokenprune.plots import pareto
from tokenprune.provenance import Provenance
from tokenprune.record import RunFolder, RunRecord
from tokenprune.types import Sample

Metrics = Mapping[str, Any]
PICTURED = 6  # questions in a picture of kept tokens

# Header, how to read it, and the cell's text.
COLUMNS: tuple[tuple[str, str, Callable[[Metrics], str]], ...] = (
    (
        "visual tokens",
        "in a layer of the LLM, mean over its layers and the questions, of all that an image has",
        lambda m: f"{m['average_tokens']:.4g}/{m['visual_tokens']:.4g}",
    ),
    (
        "accuracy %",
        "share of right answers ± its binomial standard error",
        lambda m: f"{100 * m['accuracy']:.1f}±{100 * m['accuracy_standard_error']:.1f}",
    ),
    ("of unpruned %", "accuracy relative to no pruning", lambda m: _percent(m["retention"])),
    (
        "evidence kept %",
        "share of the visual tokens on the asked objects that were kept, mean over the questions that have any",
        lambda m: _percent(m["evidence_kept"]),
    ),
    (
        "LLM prefill FLOPs",
        "of the decoder layers for one question, two per multiply-add, text included",
        lambda m: engineering(m["llm_prefill_flops"]),
    ),
    (
        "prefill time",
        "selection and LLM prefill of a batch, over the unpruned LLM prefill that was measured turn by turn with it; "
        "without pruning it shows how exact the clock is",
        lambda m: f"{m['prefill_time_ratio']:.2f}x" if "prefill_time_ratio" in m else "-",
    ),
    ("KV cache", "keys and values of one question after prefill", lambda m: f"{engineering(m['kv_cache_bytes'])}B"),
)


def engineering(value: float) -> str:
    """A number of three digits with an SI prefix: ``1.23G``."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 999.5:
            return f"{value:.3g}{prefix}"
        value /= 1000
    return f"{value:.3g}P"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def console_table(records: Sequence[RunRecord]) -> Table:
    """The result of a run for the terminal; it fits into 80 columns."""
    columns = [Column(header.replace(" ", "\n"), justify="right", no_wrap=True) for header, _, _ in COLUMNS]
    table = Table(Column("pruner", overflow="fold"), *columns, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    rows = _rows(records)
    for row, following in zip(rows, [*rows[1:], [""]], strict=True):
        table.add_row(*row, end_section=row[0] != following[0])
    return table


def _rows(records: Sequence[RunRecord]) -> list[list[str]]:
    rows = []
    for record in records:
        if record.status == "ok":
            rows.append([record.label, *(show(record.metrics) for _, _, show in COLUMNS)])
        else:
            rows.append([record.label, f"{_budget(record)} failed", *["-"] * (len(COLUMNS) - 1)])
    return rows


def _budget(record: RunRecord) -> str:
    return " ".join(f"{key}={value}" for key, value in record.budget.items()) or "all"


def write(folder: RunFolder, samples: Sequence[Sample]) -> Path:
    """Write ``report.md``, ``pareto.png`` and one ``kept_<pruner>.png`` a pruner into the run's folder.

    Args:
        folder: of a run with at least one record.
        samples: the run's questions, for the pictures.

    Returns:
        The report's path.

    Raises:
        DataError: if the folder holds no records.
    """
    records = folder.records()
    if not records:
        raise DataError(f"{folder.results.path} holds no records; run the experiment first")
    done = [record for record in records if record.status == "ok"]
    pictures = []
    if done:
        pareto(done, folder.path / "pareto.png")
        pictures = ["pareto.png", *_draw_all(folder, done, samples)]
    report = folder.path / "report.md"
    report.write_text("\n\n".join(_sections(folder, records, done, pictures)) + "\n", encoding="utf-8")
    return report


def _draw_all(folder: RunFolder, done: Sequence[RunRecord], samples: Sequence[Sample]) -> list[str]:
    """Draw what each pruner kept; the names of the pictures."""
    answers = folder.answers()
    first_of_kind: dict[str, Sample] = {}
    for sample in samples:
        first_of_kind.setdefault(sample.kind, sample)
    shown = (list(first_of_kind.values()) if len(first_of_kind) > 1 else samples)[:PICTURED]
    grid = done[0].metrics["grid"]
    if grid is None:
        return []
    names = []
    for label in dict.fromkeys(record.label for record in done if record.budget):
        cells = [record for record in done if record.label in (label, "none")]
        columns = {f"{r.metrics['average_tokens']:.4g} tokens": answers.get(r.cell, {}) for r in cells}
        names.append(f"kept_{re.sub(r'[^A-Za-z0-9.]+', '-', label)}.png")
        draw_kept(shown, columns, tuple(grid), label, folder.path / names[-1])
    return names


def _sections(
    folder: RunFolder, records: Sequence[RunRecord], done: Sequence[RunRecord], pictures: Sequence[str]
) -> list[str]:
    config, origin = records[-1].config, records[-1].provenance
    model = config["model"]["path"] or config["model"]["name"]
    sections = [
        f"# {config['pruner']['name']} on {model}, task {config['task']['name']}",
        markdown(["pruner", *(header for header, _, _ in COLUMNS)], _rows(records)),
        "\n".join(f"- **{header}**: {meaning}." for header, meaning, _ in COLUMNS),
        *(f"![{Path(name).stem}]({name})" for name in pictures[:1]),
    ]
    kinds = sorted({kind for record in done for kind in record.metrics["accuracy_by_kind"]})
    if kinds:
        rows = [
            [
                r.label,
                f"{r.metrics['average_tokens']:.4g}",
                *(_percent(r.metrics["accuracy_by_kind"].get(k)) for k in kinds),
            ]
            for r in done
        ]
        sections += ["## Accuracy by kind of question, in %", markdown(["pruner", "visual tokens", *kinds], rows)]
    if pictures[1:]:
        sections += [
            "## Kept tokens",
            "Dropped patches are faded, those that left at a later stage less.",
            *(f"![{n}]({n})" for n in pictures[1:]),
        ]
    for record in records:
        if record.error:
            sections += [f"## {record.label} {_budget(record)} failed", f"```\n{record.error.strip()}\n```"]
    return [*sections, *_reproduction(folder, records, origin)]


def _reproduction(folder: RunFolder, records: Sequence[RunRecord], origin: Provenance) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    facts = {
        "run": records[-1].run,
        "device": origin.device,
        "versions": versions,
        "git": origin.git or "not under version control",
        "code, model, data": f"{origin.code}, {origin.model}, {origin.data}",
        "finished": records[-1].finished,
    }
    sections = [
        "## Reproduce",
        "```\ntokenprune run config.yaml\n```",
        "\n".join(f"- {k}: {v}" for k, v in facts.items()),
    ]
    if len({(r.provenance.git, r.provenance.model, r.provenance.data) for r in records}) > 1:
        sections.append("**The records were not all made by the same code, weights and data;** see `results.jsonl`.")
    return sections


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, all columns but the first aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
