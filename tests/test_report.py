"""Tables, report and pictures from records alone."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tokenprune.config import parse_config
from tokenprune.errors import DataError
from tokenprune.overlay import kept_patches
from tokenprune.provenance import Provenance
from tokenprune.record import RunFolder, RunRecord
from tokenprune.report import console_table, engineering, write
from tokenprune.tasks.scenes import Scenes

CONFIG = parse_config({"pruner": "cdpruner", "budget": {"keep_tokens": [48, 16]}})
ACCURACY = {"none": {144: 0.95}, "random": {48: 0.7, 16: 0.45}, "cdpruner kernel=rbf": {48: 0.9, 16: 0.72}}


def record(label, kept, accuracy):
    metrics = {
        "questions": 240,
        "accuracy": accuracy,
        "accuracy_standard_error": 0.02,
        "accuracy_by_kind": {"color": accuracy, "count": accuracy / 2},
        "retention": accuracy / 0.95,
        "visual_tokens": 144,
        "kept_tokens": float(kept),
        "average_tokens": float(kept),
        "evidence_kept": kept / 144,
        "llm_prefill_flops": 4e6 * kept,
        "prefill_time_ratio": kept / 144,
        "kv_cache_bytes": 8192.0 * kept,
        "grid": [12, 12],
    }
    return RunRecord(
        run="r",
        cell=f"{label}-{kept}",
        label=label,
        pruner={"name": label.split()[0]},
        budget={} if label == "none" else {"keep_tokens": kept},
        config=CONFIG.to_mapping(),
        provenance=Provenance(code="c", git="abc", versions={"torch": "2"}, device="cpu", model="m", data="d"),
        seed=0,
        status="ok",
        metrics=metrics,
        seconds=1.0,
        finished="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def records():
    return [record(label, *point) for label, points in ACCURACY.items() for point in points.items()]


@pytest.fixture
def samples():
    return Scenes(num_samples=8).samples()


@pytest.fixture
def folder(tmp_path, records, samples):
    folder = RunFolder(tmp_path)
    for item in records:
        folder.results.append(item.to_mapping())
        keep = list(range(0, 144, 144 // int(item.metrics["kept_tokens"])))
        for index, sample in enumerate(samples):
            right = (
                {"answer": sample.answer, "correct": 1.0}
                if index % 2
                else {"answer": "a long wrong answer", "correct": 0.0}
            )
            stages = [{"stage": "pre_llm", "kept": keep, "tokens": len(keep)}] if item.budget else []
            line = {"cell": item.cell, "sample": sample.id, "stages": stages, **right}
            folder.samples.append(line)
    return folder


def text_of(records, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(console_table(records))
    return console.export_text()


def test_console_table_fits_and_says_it_all(records):
    text = text_of(records)
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert ["none", "144/144", "95.0±2.0", "100.0", "100.0", "576M", "1.00x", "1.18MB"] in lines
    assert ["random", "16/144", "45.0±2.0", "47.4", "11.1", "64M", "0.11x", "131kB"] in lines
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_a_failed_cell_is_shown_as_such(records):
    failed = dataclasses.replace(records[1], status="failed", metrics={}, error="Traceback ...\nValueError: no\n")
    assert "keep_tokens=48 failed" in " ".join(text_of([failed], width=120).split())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999.4, "999"), (999.6, "1k"), (1500, "1.5k"), (7.634e12, "7.63T"), (2e18, "2e+03P")],
)
def test_engineering(value, text):
    assert engineering(value) == text


def test_report(folder, samples):
    text = write(folder, samples).read_text()
    assert "# cdpruner on embedded, task scenes" in text
    assert "| random | 48/144 | 70.0±2.0 | 73.7 | 33.3 | 192M | 0.33x | 393kB |" in text
    assert "| random | 48 | 70.0 | 35.0 |" in text  # by kind
    assert "tokenprune run config.yaml" in text
    assert "- git: abc" in text
    for name in ("pareto.png", "kept_random.png", "kept_cdpruner-kernel-rbf.png"):
        assert f"]({name})" in text
        with Image.open(folder.path / name) as picture:
            assert min(picture.size) > 300
            assert np.asarray(picture.convert("L")).std() > 10  # something is drawn
    assert not (folder.path / "kept_none.png").exists()


def test_report_with_a_failure_and_another_version(folder, records, samples):
    folder.results.append(
        dataclasses.replace(records[-1], status="failed", metrics={}, error="Traceback\nValueError: no\n").to_mapping()
    )
    other = dataclasses.replace(records[0].provenance, git="def")
    folder.results.append(dataclasses.replace(records[0], provenance=other).to_mapping())
    text = write(folder, samples).read_text()
    assert "## cdpruner kernel=rbf keep_tokens=16 failed" in text
    assert "ValueError: no" in text
    assert "not all made by the same code" in text


def test_nothing_but_failures(tmp_path, records, samples):
    folder = RunFolder(tmp_path)
    folder.results.append(
        dataclasses.replace(records[0], status="failed", metrics={}, error="ValueError: no").to_mapping()
    )
    assert "ValueError: no" in write(folder, samples).read_text()
    assert not (tmp_path / "pareto.png").exists()


def test_no_records(tmp_path, samples):
    with pytest.raises(DataError, match="holds no records"):
        write(RunFolder(tmp_path), samples)


def test_no_raster_no_pictures(tmp_path, records, samples):
    folder = RunFolder(tmp_path)
    for item in records:
        folder.results.append(dataclasses.replace(item, metrics={**item.metrics, "grid": None}).to_mapping())
    assert "Kept tokens" not in write(folder, samples).read_text()


def test_kept_patches_keep_their_colour_and_dropped_ones_fade():
    image = Image.new("RGB", (40, 20), (200, 0, 0))
    drawn = kept_patches(image, [[1]], (1, 2))
    assert drawn.shape == (192, 384, 3)
    assert (drawn[:, 192:] == (200, 0, 0)).all()
    assert len(np.unique(drawn[:, :192])) == 1  # grey
    assert (kept_patches(image, [], (1, 2)) == (200, 0, 0)).all()


def test_patches_that_left_earlier_are_fainter():
    image = Image.new("RGB", (30, 10), (40, 40, 40))
    first, second, third = kept_patches(image, [[1, 2], [2]], (1, 3))[0, 64::128, 0].tolist()
    assert first > second > third == 40
