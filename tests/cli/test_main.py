"""The command line, end to end on the embedded model, and what it prints."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from tokenprune.cli.catalogue import REGISTRIES, by_idea, entries, options, where_and_reads
from tokenprune.cli.main import app
from tokenprune.pruners.base import PRUNERS, Idea
from tokenprune.sweeps.evaluate import Evaluator
from tokenprune.tasks.base import TASKS
from tokenprune.version import __version__

OPERATIONS = "dop base=none attention_depth=3 mlp_depth=1 query_depth=2 keep_tokens=144"
QUICKSTART = str(Path(__file__).parents[2] / "configs/quickstart.yaml")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The quickstart, smaller: what the command printed, and its folder."""
    output = tmp_path_factory.mktemp("runs") / "of [/me]"  # which is no markup
    overrides = ("task.num_samples=12", "budget.average_tokens=[60,40]", "timing_repeats=1", f"output={output}")
    result = call("run", QUICKSTART, *overrides)
    (folder,) = output.iterdir()
    return result, folder, overrides


def test_quickstart(run):
    result, folder, _ = run
    assert result.exit_code == 0, result.output
    for header in ("accuracy", "unpruned", "evidence", "FLOPs", "KV"):
        assert header in result.stdout
    table = [line.partition("/144")[0].split() for line in result.stdout.splitlines() if "/144" in line]
    names = ["random", "uniform", "divprune", "visionzip", "fastv layer=1", "sparsevlm", "pyramiddrop", "dart layer=1"]
    names += ["cdpruner+fastv layer=3", OPERATIONS, "cdpruner"]
    rows = [name for name in names for _ in range(1 if name == OPERATIONS else 2)]
    assert [" ".join(row[:-1]) for row in table] == ["none", *rows]
    spent = [float(row[-1]) for row in table[1:] if " ".join(row[:-1]) != OPERATIONS]
    assert all(60 <= tokens < 63 for tokens in spent[::2])
    assert all(40 <= tokens < 44 for tokens in spent[1::2])
    assert f"report: {folder}/report.md" in result.stdout
    assert {path.name for path in folder.iterdir()} == {
        *(".lock", "config.yaml", "results.jsonl", "samples.jsonl", "report.md", "report.tex", "report.html"),
        *("results.csv", "kinds.csv", "pairs.csv", "overlaps.csv"),
        *("pareto.png", "pareto_tokens.png", "pareto_time.png", "difference_cdpruner_random.png"),
        *(f"kept_{re.sub('[ =+]', '-', name)}.png" for name in names if name != OPERATIONS),  # of ten pruners at most
    }


def test_the_embedded_model_answers_and_pruning_costs_what_it_should(run):
    records = [json.loads(line) for line in (run[1] / "results.jsonl").read_text().splitlines()]
    unpruned, *pruned = [record["metrics"] for record in records]
    assert unpruned["accuracy"] >= 0.75  # 12 questions; the model has more than 0.9 on many
    assert unpruned["retention"] == 1.0
    for metrics in pruned:
        assert metrics["accuracy"] <= unpruned["accuracy"] + 0.1
        assert metrics["llm_prefill_flops"] < 0.5 * unpruned["llm_prefill_flops"]
        assert metrics["kv_cache_bytes"] < 0.55 * unpruned["kv_cache_bytes"]  # half of it where operations are pruned
        assert metrics["retention"] == pytest.approx(metrics["accuracy"] / unpruned["accuracy"])


def test_again_computes_nothing_and_says_the_same(run, monkeypatch):
    first, folder, overrides = run
    before = (folder / "results.jsonl").read_bytes()
    monkeypatch.setattr(Evaluator, "ask", lambda *args: pytest.fail("computed again"))
    monkeypatch.setattr(
        "tokenprune.report.pictures.draw_kept", lambda *args: None
    )  # slow, and nothing else depends on it
    again = call("run", QUICKSTART, *overrides)
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    assert (folder / "results.jsonl").read_bytes() == before


def test_the_written_config_is_the_run(run):
    result = call("sweep", run[1] / "config.yaml", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "22 cells of 1 points, 22 of them finished" in " ".join(result.stdout.split())


def test_a_dry_run_says_where_its_speeds_are_from(run):
    folder = run[1]
    result = call("sweep", folder / "config.yaml", "task.num_samples=13", "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"at the speed of the records in '{folder.parent}'" in " ".join(result.stdout.split())


@pytest.mark.full  # the command itself is in report/test_files
def test_report_again(run):
    folder = run[1]
    for path in folder.glob("*.png"):
        path.unlink()
    result = call("report", folder)
    assert result.exit_code == 0, result.output
    assert len(list(folder.glob("kept_*.png"))) == 10


def test_a_failed_cell_makes_exit_status_1(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenprune.pruners.uniform.Uniform._select", lambda *args: 1 / 0)
    small = ("task.num_samples=2", "budget.keep_tokens=8", "timing_repeats=0", "baselines=[]", "pruner=uniform")
    result = call("run", QUICKSTART, *small, f"output={tmp_path}")
    assert result.exit_code == 1
    assert "uniform keep_tokens=8 failed: ZeroDivisionError" in " ".join(result.stderr.split())
    assert "keep_tokens=8 failed" in result.stdout


def test_interrupted(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "answer", interrupt)
    result = call("run", QUICKSTART, f"output={tmp_path}")
    assert result.exit_code == 130
    assert "interrupted; what is finished is kept" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("kind", REGISTRIES)
def test_list(kind):
    result = call("list", kind)
    assert result.exit_code == 0, result.output
    rows = [re.split(r"  +", line.strip()) for line in result.stdout.splitlines()]
    for entry in entries(kind):
        assert entry.summary, entry.name
        if kind == "pruners":
            facts = [str(entry.year)] if entry.year else []
            assert [entry.name, *facts, where_and_reads(entry)[0], entry.summary] in rows
        else:
            assert [entry.name, entry.summary] in [row[:2] for row in rows]
            assert not entry.paper or [entry.name, entry.summary, entry.paper] in rows


def test_pruners_are_listed_by_their_ideas():
    rows = [line.split() for line in call("list", "pruners").stdout.splitlines()]
    heads = [row[0] for row in rows if len(row) == 1 and row[0] in get_args(Idea)]
    assert heads == [idea for idea in get_args(Idea) if idea in heads]
    assert {entry.idea for entry in entries("pruners")} <= set(heads)
    first = [row[0] for row in rows if row]
    assert first.index("attention") < first.index("fastv") < first.index("diversity") < first.index("divprune")


def test_one_without_an_idea_comes_last(monkeypatch):
    entry = dataclasses.replace(entries("pruners")[0], name="theirs", idea=None)
    groups = by_idea([entry, *entries("pruners")])
    assert list(groups)[-1] == "other"
    assert [each.name for each in groups["other"]] == ["theirs"]


def test_list_names_broken_plugins(monkeypatch):
    monkeypatch.setitem(PRUNERS.broken, "theirs", "ImportError: no module")
    result = call("list", "pruners")
    assert result.exit_code == 0
    assert "plug-in 'theirs' is ignored: ImportError: no module" in result.stderr


def test_show():
    result = call("show", "cdpruner")
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "cdpruner (pruners): " in text
    assert "https://arxiv.org/abs/2506.10967" in text
    rows = {row[0]: row for line in text.splitlines() if len(row := re.split(r"  +", line.strip())) == 4}
    for option in ("conditioning", "relevance_scope", "kernel", "kernel_form", "theta", "sign", "positions"):
        assert rows[option][3], option  # what it means
    assert rows["relevance_scope"][1:3] == ["row or batch", "row"]
    assert rows["kernel"][1:3] == ["text", "cosine"]
    assert rows["sign"][1:3] == ["an integer or null", "null"]


def test_show_tells_defaults_that_are_made():
    rows = {name: default for name, _, default, _ in options(PRUNERS.get("dop"))}
    assert rows["base"] == '{"name": "cdpruner"}'
    assert rows["shares"] == "[1.0]"
    assert {name: default for name, _, default, _ in options(TASKS.get("folder"))}["path"] == "required"


@pytest.mark.parametrize("kind", REGISTRIES)
def test_show_explains_every_option(kind):
    for entry in entries(kind):
        result = call("show", entry.name)
        assert result.exit_code == 0, result.output
        assert f"{entry.name} ({kind}): {entry.summary}" in result.stdout
        for name, *_, meaning in options(entry.target):
            assert meaning, f"{entry.name}: {name} is not documented"


def test_a_name_that_two_kinds_have():
    text = call("show", "none").stdout
    assert "none (conditioning)" in text
    assert "none (tracking)" in text


def test_version():
    assert call("--version").stdout == f"tokenprune {__version__}\n"


def test_entry_point():
    code = "from tokenprune.cli.main import main; main()"
    good = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert good.returncode == 0
    assert "Visual token pruning" in good.stdout
    bad = subprocess.run([sys.executable, "-c", code, "show", "cdprunr"], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert bad.stderr.startswith("tokenprune: nothing is named 'cdprunr'; did you mean 'cdpruner'?")
    assert bad.stderr.count("\n") == 1
