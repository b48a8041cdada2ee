"""From a folder of records to the files of its report; nothing is computed again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tokenprune.core.errors import DataError
from tokenprune.core.sample import Sample
from tokenprune.report import contrast, hard, pairs, pictures, readings, results, sheets
from tokenprune.report.comparison import Choice, Outcomes, Pair, outcomes
from tokenprune.report.document import Block, Code, Heading, Items, Paragraph
from tokenprune.report.latex import latex
from tokenprune.report.markdown import markdown
from tokenprune.report.numbers import budget
from tokenprune.report.page import page
from tokenprune.report.rows import Section, sections_of
from tokenprune.report.sections import SECTIONS
from tokenprune.sweeps.overlay import as_seen
from tokenprune.sweeps.store import RunFolder, RunRecord

EQUAL = Choice()  # FLOPs within 2 %


def write(
    folder: RunFolder,
    samples: Sequence[Sample],
    *,
    out: Path | None = None,
    difference: tuple[str, str] | None = None,
    choice: Choice = EQUAL,
) -> Path:
    """Write ``report.md``, ``.tex`` and ``.html``, the tables as CSV files and the pictures as PNG files.

    The same records and answers give the same bytes, in whatever order their lines are.

    Args:
        folder: of a run or sweep with at least one record.
        samples: the questions of its tasks, for the pictures; without them there are no images.
        out: where to write; the folder itself if not given.
        difference: labels of two pruners whose kept tokens are compared; the one that is studied and ``random`` if
            not given.
        choice: which rows cost the same, and may be compared.

    Returns:
        The path of ``report.md``.

    Raises:
        DataError: if the folder holds no records or is of another version, the files cannot be written, or there are
            no such pruners.
    """
    config = _config(folder.path)
    sections = _sections(folder, config)
    target = out or folder.path
    with _writing(target):
        target.mkdir(parents=True, exist_ok=True)
        maker = _Maker(folder, sections, samples, target, difference, choice)
        blocks = [Heading(_title(sections, config), 1), *maker.blocks(), *_reproduction(folder, sections, config)]
        files = {
            "report.tex": latex(blocks),
            "report.html": page(blocks, target),
            "results.csv": sheets.results(sections),
            "kinds.csv": sheets.kinds(sections),
            "pairs.csv": sheets.pairs(maker.pairs),
            "overlaps.csv": sheets.overlaps(maker.overlaps),
            "report.md": markdown(blocks),
        }
        for name, text in files.items():
            (target / name).write_text(text, encoding="utf-8", newline="\n")
    return target / "report.md"


def ordered_records(folder: RunFolder) -> list[RunRecord]:
    """The records of a folder in the order of the report.

    Raises:
        DataError: see ``write``.
    """
    sections = _sections(folder, _config(folder.path))
    return [record for section in sections for row in section.rows for record in (*row.records, *row.failed)]


def _sections(folder: RunFolder, config: Mapping[str, Any]) -> list[Section]:
    if not os.path.isdir(folder.path):  # False too if it is hidden from us
        raise DataError(f"there is no folder {str(folder.path)!r}")
    records = folder.records()
    if not records:
        if any(True for _ in folder.results):
            raise DataError(f"{folder.results.path} is of another version of tokenprune; run the experiment again")
        raise DataError(f"{folder.results.path} holds no records; run the experiment first")
    return sections_of(records, config)


def _config(path: Path) -> dict[str, Any]:
    """What the folder says of the run or sweep; it decides about the order of rows alone, so that it may be missing."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"report in {str(target)!r} cannot be written: {error.strerror or error}") from None


def _title(sections: Sequence[Section], config: Mapping[str, Any]) -> str:
    named = config.get("name")
    studied = next((section.studied for section in sections if section.studied), "")
    where = sections[0].title if len(sections) == 1 else f"{len(sections)} models and tasks"
    return f"{named or studied.partition(' ')[0] or 'Pruning'} on {where}"


class _Maker:
    """Collects what a report says of its sections, while it draws their pictures."""

    def __init__(
        self,
        folder: RunFolder,
        sections: Sequence[Section],
        samples: Sequence[Sample],
        target: Path,
        difference: tuple[str, str] | None,
        choice: Choice,
    ) -> None:
        self.folder, self.sections, self.samples, self.target = folder, sections, samples, target
        self.choice = choice
        self.two = [contrast.choose_pruners(section, difference) for section in sections]
        cells = {record.cell for section in sections for row in section.done for record in row.records}
        self.outcomes: Outcomes = outcomes(folder, cells)
        self.shown = [pictures.shown_ids(samples, self._answered(section)) for section in sections]
        whole = {cell for two in self.two if two for cell in two.cells}
        ids = {sample for shown in self.shown for sample in shown}
        drawn = {row.any.cell for section in sections for row in section.done}
        self.lines = pictures.lines_of(folder, lambda cell, s: cell in whole or (s in ids and cell in drawn))
        self.pairs: list[tuple[Section, list[Pair]]] = []
        self.overlaps: list[list[Any]] = []

    def _answered(self, section: Section) -> Mapping[str, float]:
        return self.outcomes[section.done[0].any.cell] if section.done else {}

    def blocks(self) -> list[Block]:
        """The blocks of all sections, under a heading each if there are several."""
        if len(self.sections) == 1:
            return self._section(0, pictures.Place(self.target))
        blocks: list[Block] = []
        for at, section in enumerate(self.sections):
            place = pictures.Place(self.target, f"{at + 1}_")
            inner = [
                Heading(block.text, 3) if isinstance(block, Heading) else block for block in self._section(at, place)
            ]
            blocks += [Heading(section.title), *inner]
        return blocks

    def _section(self, at: int, place: pictures.Place) -> list[Block]:
        section, two = self.sections[at], self.two[at]
        tested, told = pairs.section_pairs(self.folder, section, self.outcomes, self.choice)
        self.pairs.append((section, tested))
        blocks = [
            *results.results(section),
            *readings.readings(section),
            *(pictures.plots(section, place) if section.scored else []),
            *results.retention(section, self.choice),
            *results.kinds(section),
            *hard.hard_questions(section, self.sections, self.outcomes),
            *told,
            *(pictures.heat_maps(section, place) if section.scored else []),
        ]
        some = next((self.lines[row.any.cell] for row in section.done if row.any.cell in self.lines), {})
        asked = pictures.asked_samples(self.samples, self.shown[at], some)
        samples = [as_seen(sample, section.rows[0].any.config["model"]) for sample in asked]
        blocks += pictures.kept_pictures(section, samples, self.lines, place)
        if two:
            sheet, compared = contrast.difference(section, two, samples, self.lines, place)
            self.overlaps += sheet
            blocks += compared
        blocks += [block for write in SECTIONS.values() for block in write(section)]
        return [*blocks, *_failures(section), *results.notes(section)]


def _failures(section: Section) -> list[Block]:
    blocks: list[Block] = []
    for row in section.rows:
        for record in row.failed:
            title = Heading(f"{record.label} {budget(record.budget)} failed")
            blocks += [title, Code((record.error or "no error was recorded").strip())]
    return blocks


def _reproduction(folder: RunFolder, sections: Sequence[Section], config: Mapping[str, Any]) -> list[Block]:
    """What made the records, and how to make them again."""
    rows = [row for section in sections for row in section.rows]
    records = [record for row in rows for record in (*row.records, *row.failed)]
    origins = [record.provenance for record in records]
    versions = {f"{name} {version}" for origin in origins for name, version in origin.versions.items()}
    facts = {
        "run": {record.run for record in records},
        "device": {origin.device for origin in origins if origin.device},
        "versions": versions,
        "git": {origin.git or "not under version control" for origin in origins},
        "weights": {origin.model for origin in origins},
        "data": {origin.data for origin in origins},
        "code": {f"{len({origin.code for origin in origins})} different, see results.csv"},
        "questions": {str(record.metrics["questions"]) for record in records if record.status == "ok"},
        "last record": {max(record.finished for record in records)},
    }
    command = "sweep" if {"grid", "zip", "seeds", "name"} & config.keys() else "run"
    blocks: list[Block] = [
        Heading("Reproduce"),
        Code(f"tokenprune {command} config.yaml\ntokenprune report ."),
        Items([(name, ", ".join(sorted(values))) for name, values in facts.items() if values]),
    ]
    for section in sections:
        made = {
            (r.provenance.git, r.provenance.model, r.provenance.data)
            for row in section.rows
            for r in (*row.records, *row.failed)
        }
        if len(made) > 1:
            said = "were not all made by the same code, weights and data; see results.jsonl."
            blocks.append(Paragraph(f"The records on {section.title} {said}"))
    return blocks
