"""All files of a report from records and answers alone, the same ones whatever the order of the lines."""

import csv
import dataclasses
import io
import random as rng
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from report_runs import TASK, leave, random, rbf, record, usual
from strict_page import check_page
from typer.testing import CliRunner
from unprivileged import unprivileged

from tokenprune.cli.main import app
from tokenprune.core.errors import DataError
from tokenprune.report import ordered_records, write
from tokenprune.sweeps.store import RunFolder
from tokenprune.tasks.scenes import Scenes

KERNELS = [
    record(f"cdpruner kernel={k} theta={t}", 48, 0.5, pruner={"name": "cdpruner", "kernel": k, "theta": t})
    for k in ("cosine", "laplacian")
    for t in (0.25, 0.75)
]


@pytest.fixture(scope="module")
def written(tmp_path_factory, samples):
    """A folder with its report."""
    folder = leave(tmp_path_factory.mktemp("written"), usual(), samples)
    assert write(folder, samples) == folder.path / "report.md"
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("l")}


def sheet(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_what_is_written(written):
    path, folder = written.path / "report.md", written
    pictures = {"pareto.png", "pareto_tokens.png", "pareto_time.png", "kept_random.png", "kept_cdpruner-kernel-rbf.png"}
    pictures |= {"difference_cdpruner-kernel-rbf_random.png"}
    assert {each.name for each in folder.path.iterdir()} == pictures | {
        *("results.jsonl", "samples.jsonl", "report.md", "report.tex", "report.html"),
        *("results.csv", "kinds.csv", "pairs.csv", "overlaps.csv"),
    }
    markdown, latex = path.read_text(), (folder.path / "report.tex").read_text()
    assert "# cdpruner on embedded, task scenes" in markdown
    assert "| random | 48/144 | 70.0±2.0 | 3 ±10.0 | 73.7 | 33.3 | 192M | 0.33x | 393kB |" in markdown
    assert r"random & 48/144 & 70.0$\pm$2.0 & 3 $\pm$10.0 & 73.7 & 33.3 & 192M & 0.33x & 393kB \\" in latex
    for name in pictures:
        assert f"]({name})" in markdown
        assert f"]{{{name}}}" in latex
        with Image.open(folder.path / name) as picture:
            assert min(picture.size) > 300
            assert np.asarray(picture.convert("L")).std() > 10  # something is drawn
    assert "- **git**: abc." in markdown
    assert str(folder.path) not in markdown + latex + (folder.path / "report.html").read_text()


def test_the_page_has_all_of_it(written):
    folder = written
    text = (folder.path / "report.html").read_text()
    tags = check_page(text)
    markdown = (folder.path / "report.md").read_text()
    assert tags.count("img") == markdown.count("![") == 6
    assert tags.count("table") == markdown.count("\n| --- | ") == 5
    assert re.findall(r"<h2[^>]*>([^<]+)", text) == re.findall(r"^## (.+)$", markdown, re.MULTILINE)


def test_sheets(written):
    folder = written
    found = {name: sheet(folder.path / f"{name}.csv") for name in ("results", "kinds", "pairs", "overlaps")}
    assert [len(rows) for rows in found.values()] == [5, 10, 2, 2]
    row = found["results"][1]
    assert (row["pruner"], row["budget"], row["seeds"], row["status"]) == ("random", "keep_tokens=48", "3", "ok")
    assert float(row["accuracy"]) == pytest.approx(0.7)
    assert float(row["accuracy_sd"]) == pytest.approx(0.1)
    assert found["results"][0]["accuracy_sd"] == ""
    assert {row["kind"] for row in found["kinds"]} == {"color", "count"}
    assert found["pairs"][0]["a_seeds"] == "3"
    assert float(found["overlaps"][0]["overlap"]) == pytest.approx(28 / 68)


def test_the_same_bytes_whatever_the_order_of_the_lines(tmp_path, samples):
    records = [*usual(), *KERNELS[:3], rbf(48, 0.9, model="llava")]
    records.append(dataclasses.replace(random(48, 0, 7), status="failed", metrics={}, error="Traceback\nno"))
    first = leave(tmp_path / "a", records, samples)
    write(first, samples[:2])
    expected = files(first.path)
    second = RunFolder(tmp_path / "b")
    second.path.mkdir()
    for name in ("results.jsonl", "samples.jsonl"):
        lines = (first.path / name).read_text().splitlines(keepends=True)
        rng.Random(3).shuffle(lines)
        (second.path / name).write_text("".join(lines))
    write(second, samples[:2])
    assert files(second.path) == expected
    assert [each.cell for each in ordered_records(second)] == [each.cell for each in ordered_records(first)]


def test_several_models_and_tasks(tmp_path, samples):
    other = {**TASK, "seed": 1}
    others = Scenes(num_samples=4, seed=1).samples()
    here = [record("none", 144, 0.95), rbf(48, 0.9), random(48, 0.7, 0)]
    there = [record("none", 144, 0.9, task=other), rbf(48, 0.8, task=other), random(48, 0.6, 0)]
    there[2] = record("random", 48, 0.6, task=other)
    folder = leave(tmp_path, here, samples)
    leave(tmp_path, there, others)
    text = write(folder, [*samples, *others]).read_text()
    titles = [f"embedded, task scenes (task.seed={seed})" for seed in (0, 1)]
    assert "# cdpruner on 2 models and tasks" in text
    for at, title in enumerate(titles, 1):
        assert f"## {title}" in text
        assert f"]({at}_pareto.png)" in text
        assert f"]({at}_kept_cdpruner-kernel-rbf.png)" in text
    pairs = sheet(tmp_path / "pairs.csv")
    assert [row["detail"] for row in pairs] == ["task.seed=0", "task.seed=1"]
    check_page((tmp_path / "report.html").read_text())
    assert (tmp_path / "1_kept_random.png").read_bytes() != (tmp_path / "2_kept_random.png").read_bytes()


def test_a_grid_is_drawn(tmp_path, samples):
    text = write(leave(tmp_path, [*usual(), *KERNELS], samples), []).read_text()
    assert "](grid_cdpruner.png)" in text


def test_only_so_many_pictures(tmp_path, samples):
    many = [record(f"dart layer={n}", 48, 0.5, pruner={"name": "dart", "layer": n}) for n in range(12)]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"baselines": ["dart"], "pruner": "cdpruner"}))
    text = write(leave(tmp_path, [*usual(), *many], samples), samples[:1]).read_text()
    assert text.count("](kept_") == 10
    assert "](kept_random.png)" in text
    assert "](kept_cdpruner-kernel-rbf.png)" in text
    assert "4 more pruners are not drawn" in text


def test_named_pruners(folder, samples):
    text = write(folder, samples[:1], difference=("random", "cdpruner kernel=rbf")).read_text()
    assert "](difference_random_cdpruner-kernel-rbf.png)" in text
    with pytest.raises(DataError, match="there is no pruner 'x'"):
        write(folder, samples, difference=("random", "x"))


def test_a_failure_and_another_version(tmp_path, samples):
    failed = dataclasses.replace(rbf(16, 0), status="failed", metrics={}, error="Traceback\nValueError: no\n")
    other = dataclasses.replace(random(48, 0.5, 0), provenance=dataclasses.replace(failed.provenance, git="def"))
    text = write(leave(tmp_path, [*usual()[:1], failed, other], samples), samples).read_text()
    assert "## cdpruner kernel=rbf keep_tokens=16 failed" in text
    assert "ValueError: no" in text
    assert "not all made by the same code" in text
    assert [row["status"] for row in sheet(tmp_path / "results.csv")] == ["ok", "ok", "failed"]


def test_nothing_but_failures(tmp_path, samples):
    failed = dataclasses.replace(rbf(16, 0), status="failed", metrics={}, error="ValueError: no")
    assert "ValueError: no" in write(leave(tmp_path, [failed], samples), samples).read_text()
    assert not list(tmp_path.glob("*.png"))


def test_without_images_or_answers(tmp_path, folder, samples):
    out = tmp_path / "there" / "deep"
    text = write(folder, [], out=out).read_text()
    assert "Kept tokens of" not in text
    assert "## Difference of two pruners" in text  # counts need no images
    assert not list(out.glob("kept_*"))
    assert set(folder.path.iterdir()) == {folder.results.path, folder.samples.path}
    folder.samples.path.unlink()
    text = write(folder, samples, out=out).read_text()
    assert "Not tested: samples.jsonl holds 0 of 4 answers" in text


def test_questions_of_another_task_are_not_drawn(folder, samples):
    """Ids alone may agree by chance."""
    others = [dataclasses.replace(sample, question="another?") for sample in samples]
    assert "](kept_" not in write(folder, others).read_text()


def test_an_image_without_a_raster(tmp_path, samples):
    folder = leave(tmp_path, usual(), samples)
    text = folder.samples.path.read_text()
    folder.samples.path.write_text(re.sub(r'"grid": \[12, 12\]', '"grid": null', text))
    assert "](kept_" not in write(folder, samples).read_text()


def call(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)], env={"COLUMNS": "200"})


def test_command(folder, tmp_path):
    result = call(folder.path, "--difference", "random", "cdpruner kernel=rbf", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"report: {tmp_path}/out/report.md" in result.stdout
    assert "3 ±10.0" in result.stdout
    assert (tmp_path / "out" / "difference_random_cdpruner-kernel-rbf.png").exists()
    assert (tmp_path / "out" / "kept_random.png").exists()


def test_data_that_is_gone_costs_the_images_alone(tmp_path, samples, caplog):
    gone = {"name": "folder", "path": "/no/such/folder", "seed": 0}
    folder = leave(tmp_path, [record("random", 48, 0.5, task=gone), record("none", 144, 0.9, task=gone)], samples)
    result = call(folder.path)
    assert result.exit_code == 0, result.output
    assert "no images of task 'folder'" in caplog.text


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        ("nothing", (), "there is no folder"),
        ("empty", (), "results.jsonl holds no records; run the experiment first"),
        ("old record", (), "results.jsonl is of another version of tokenprune; run the experiment again"),
        ("old metrics", (), "the record of 'random' has no 'average_tokens': it is of another version"),
        ("old answers", (), "samples.jsonl is of another version; run the experiment again"),
        ("usual", ("--difference", "random", "dart"), "there is no pruner 'dart' in embedded, task scenes; "),
        ("usual", ("--out", "FILE"), "cannot be written: "),
    ],
)
def test_mistakes(tmp_path, samples, prepare, options, message):
    path = tmp_path / "run"
    folder = RunFolder(path)
    if prepare != "nothing":
        path.mkdir()
    if prepare == "old record":
        folder.results.append({"from": "long ago"})
    if prepare == "old metrics":
        old = random(48, 0.5, 0)
        del old.metrics["average_tokens"]
        folder.results.append(old.to_mapping())
    if prepare in ("usual", "old answers"):
        leave(path, usual(), samples)
    if prepare == "old answers":
        folder.samples.append({"cell": usual()[0].cell, "sample": samples[0].id, "kept": [1], "correct": 1.0})
    (tmp_path / "file").write_text("")
    result = call(path, *(tmp_path / "file" if option == "FILE" else option for option in options))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\ntokenprune: ") + result.stderr.startswith("tokenprune: ") == 1
    assert "Traceback" not in result.output
    assert not list(path.glob("report*"))


def test_an_unwritable_folder(samples):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        folder = leave(root / "run", usual()[:2], samples)
        write(folder, samples[:1])  # imports everything while it may
        (root / "locked").mkdir(mode=0o555)
        for locked in (root / "locked", root / "locked" / "new"):
            with unprivileged(), pytest.raises(DataError, match=r"report in '.*' cannot be written: Permission denied"):
                write(folder, samples[:1], out=locked)
        (root / "run").chmod(0o500)
        with unprivileged(), pytest.raises(DataError):
            write(folder, samples[:1])
