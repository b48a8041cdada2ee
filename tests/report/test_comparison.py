"""Pairs of equal cost from a run's records and answers alone, in Python and on the command line."""

import dataclasses

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tokenprune.cli.main import app
from tokenprune.core.errors import ConfigError, DataError
from tokenprune.report.comparison import Choice, compare
from tokenprune.report.pairs import console_table, write
from tokenprune.report.significance import compare_paired, mcnemar
from tokenprune.sweeps.config import parse_config
from tokenprune.sweeps.provenance import Provenance
from tokenprune.sweeps.store import RunFolder, RunRecord

CONFIG = parse_config({"pruner": "cdpruner", "budget": {"keep_tokens": 48}}).to_mapping()
QUESTIONS = 40
# Label, tokens, FLOPs, and the numbers of the questions that are answered rightly.
CELLS = [
    ("none", 144, 6.6e8, range(40)),
    ("random", 72, 3.30e8, range(20)),
    ("random", 48, 2.20e8, range(10)),
    ("cdpruner [x]", 72, 3.35e8, range(8, 36)),
    ("dop policy=a", 90, 3.00e8, range(2, 40)),
    ("dop policy=b", 48, 2.21e8, range(1, 9)),
]


def record(label, tokens, flops, right):
    metrics = {"accuracy": len(right) / QUESTIONS, "questions": QUESTIONS, "average_tokens": tokens}
    return RunRecord(
        run="r",
        cell=f"{label}-{tokens}",
        label=label,
        pruner={"name": label.split()[0]},
        budget={"keep_tokens": tokens},
        config=CONFIG,
        provenance=Provenance(code="c", git=None, versions={}, device="cpu", model="m", data="d"),
        seed=0,
        status="ok",
        metrics=metrics | {"llm_prefill_flops": flops},
        seconds=1.0,
        finished="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path)
    for number, (label, tokens, flops, right) in enumerate(CELLS):
        item = record(label, tokens, flops, right)
        folder.results.append(item.to_mapping())
        turned = range(QUESTIONS) if number % 2 else reversed(range(QUESTIONS))  # the order on disk does not matter
        lines = [{"cell": item.cell, "sample": f"q{at}", "correct": float(at in right)} for at in turned]
        folder.samples.append(*lines)
    failed = dataclasses.replace(record("fastv", 72, 3.3e8, ()), status="failed", metrics={}, error="no")
    folder.results.append(failed.to_mapping())
    return folder


def named(pairs):
    return [(pair.first.label, pair.second.label) for pair in pairs]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, [("random", "cdpruner [x]"), ("random", "dop policy=b")]),
        ({"within": 0.01}, [("random", "dop policy=b")]),
        (
            {"within": 0.11},
            [
                ("random", "cdpruner [x]"),
                ("random", "dop policy=a"),
                ("random", "dop policy=b"),
                ("cdpruner [x]", "dop policy=a"),
            ],
        ),
        ({"within": 0.11, "only": "dop|cd"}, [("cdpruner [x]", "dop policy=a")]),
        ({"within": 0.11, "against": "^cdpruner"}, [("random", "cdpruner [x]"), ("dop policy=a", "cdpruner [x]")]),
        ({"within": 0, "by": "average_tokens"}, [("random", "cdpruner [x]"), ("random", "dop policy=b")]),
    ],
)
def test_pairs(folder, choice, expected):
    assert named(compare(folder, Choice(**choice))) == expected


def test_the_test_is_that_of_the_answers(folder):
    pairs = compare(folder, Choice())
    first, second = ([float(at in right) for at in range(QUESTIONS)] for *_, right in (CELLS[1], CELLS[3]))
    assert pairs[0].test == compare_paired(first, second)
    assert (pairs[0].test.first_only, pairs[0].test.second_only) == (8, 16)
    assert pairs[0].test.difference == pytest.approx(pairs[0].first.any.metrics["accuracy"] - 28 / 40)
    assert [pair.test.p for pair in pairs] == [mcnemar(8, 16), mcnemar(2, 0)]
    assert [pair.holm for pair in pairs] == pytest.approx([2 * mcnemar(8, 16), 0.5])
    alone = compare(folder, Choice(within=0.01))
    assert alone[0].holm == alone[0].test.p


def test_written_and_printed(folder, tmp_path):
    choice = Choice(only="random|cdpruner")
    write(compare(folder, choice), choice, tmp_path / "out.md")
    text = (tmp_path / "out.md").read_text()
    test = compare(folder, choice)[0].test
    assert (
        f"| random @ 72 | cdpruner \\[x\\] @ 72 | 50.0 | 70.0 | -20.0 | "
        f"{100 * test.low:+.1f} to {100 * test.high:+.1f} | 8 : 16 | 0.15 | 0.15 | 330M | 335M |"
    ) in text
    assert "40 questions; 1 pairs: --within 0.02 --by flops --only 'random\\|cdpruner'." in text
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(console_table(compare(folder, choice)))
    printed = console.export_text()
    assert "[x]" in printed
    assert "8 : 16" in printed
    assert "…" not in printed


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_command(folder, tmp_path):
    result = call("compare", folder.path)
    assert result.exit_code == 0, result.output
    assert f"comparison: {folder.path / 'comparison.md'}" in result.stdout
    for text in (result.stdout, (folder.path / "comparison.md").read_text()):
        assert [split in text for split in ("8 : 16", "2 : 0", "12 : 30")] == [True, True, False]
    more = call("compare", folder.path, "--within", 0.11, "--against", "policy", "--out", tmp_path / "more.md")
    assert more.exit_code == 0, more.output
    assert (tmp_path / "more.md").read_text().count("dop policy") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "fast"), "has no two cells whose labels contain 'fast' that are within 2 % of each other's flops"),
        (("--only", "dop", "--against", "policy"), "contain 'dop' and one of which contains 'policy' that are within"),
        (("--within", 0.0001), "has no two cells that are within 0.01 % of each other's flops"),
        (("--within", 2), "within must be at least 0 and below 1, got 2.0"),
        (("--by", "flop"), "by is 'flop'; did you mean 'flops'?"),
        (("--only", "(x"), "only '(x' is no regular expression: "),
        (("--out", "/no/such/folder/x.md"), "'/no/such/folder/x.md' cannot be written: No such file or directory"),
    ],
)
def test_mistakes(folder, options, message):
    result = call("compare", folder.path, *options)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("tokenprune: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (folder.path / "comparison.md").exists()


def test_nothing_to_compare(folder, tmp_path):
    with pytest.raises(DataError, match=r"there is no folder '.*nowhere'"):
        compare(RunFolder(tmp_path / "nowhere"), Choice())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no finished records; run the experiment first"):
        compare(RunFolder(tmp_path / "empty"), Choice())
    lines = folder.samples.path.read_text().splitlines(keepends=True)
    folder.samples.path.write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match=r"samples.jsonl holds 39 of 40 answers of 'dop policy=b'; they are needed"):
        compare(folder, Choice())
    folder.samples.append({"cell": "dop policy=b-48", "sample": "another", "correct": 1.0})
    with pytest.raises(DataError, match="'random' and 'dop policy=b' did not answer the same questions"):
        compare(folder, Choice())
    folder.samples.path.unlink()
    with pytest.raises(DataError, match="holds 0 of 40 answers of 'random'"):
        compare(folder, Choice())


def test_scores_in_between(folder, tmp_path):
    folder.samples.append({"cell": "random-72", "sample": "q0", "correct": 0.5})
    tests = [pair.test for pair in compare(folder, Choice())]
    assert {test.test for test in tests} == {"mcnemar", "sign flips"}
    assert call("compare", str(folder.path)).exit_code == 0
    assert "signs of the differences flipped" in (folder.path / "comparison.md").read_text()


def test_questions_of_a_unit_are_flipped_together(folder):
    alone = compare(folder, Choice())
    for cell in {line["cell"] for line in folder.samples}:
        lines = [line for line in folder.samples if line["cell"] == cell]
        folder.samples.append(*({**line, "unit": f"u{int(line['sample'][1:]) // 4}"} for line in lines))
    together = compare(folder, Choice())
    for one, other in zip(alone, together, strict=True):
        first, second = (
            [float(at in right) for at in range(QUESTIONS)]
            for label, tokens, _, right in CELLS
            for row in (other.first, other.second)
            if row.any.cell == f"{label}-{tokens}"
        )
        units = [f"u{at // 4}" for at in range(QUESTIONS)]
        expected = {compare_paired(first, second, units).p, compare_paired(second, first, units).p}
        assert other.test.p in expected
        assert other.test.test == "sign flips"
        assert other.test.difference == pytest.approx(one.test.difference)


def test_an_outcome_outside_0_to_1(folder):
    folder.samples.append({"cell": "random-72", "sample": "q0", "correct": 1.5})
    with pytest.raises(DataError, match=r"must be in \[0, 1\]"):
        compare(folder, Choice())


def test_choices_that_cannot_be():
    with pytest.raises(ConfigError, match=r"against '\[' is no regular expression"):
        Choice(against="[")
