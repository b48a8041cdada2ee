"""``study-policies`` and ``study-report`` on the command line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenprune.cli.main import app
from tokenprune.testing.checkpoints import save_llava

STUDY = Path(__file__).parents[2] / "experiments/dop_additivity/study.yaml"
SMALL = (
    "bases=[{pruner: divprune, tokens: [6, 25]}]",
    "budgets=[12]",
    "greedy=[]",
    "samples=4",
    "batch_size=6",
    "max_new_tokens=2",
    "validation.num_samples=6",
    "test.num_samples=6",
)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What the command printed, and the file of results."""
    folder = tmp_path_factory.mktemp("study")
    model = f"model={{name: llava, path: {save_llava(folder / 'llava', clip=False)}}}"
    result = call("study-policies", STUDY, model, f"output={folder}/out", *SMALL)
    return result, next((folder / "out").glob("*/results.jsonl"), None)


def test_study(done):
    result, results = done
    assert result.exit_code == 0, result.output
    assert f"results: {results}" in result.stdout
    assert f"report: {results.with_name('report.md')}" in result.stdout
    assert "measuring plans" in result.stderr
    assert "# Study of depth-wise policies" in results.with_name("report.md").read_text()


def test_report_elsewhere(done, tmp_path):
    _, results = done
    result = call("study-report", results, "--out", tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new/report.md").read_text() == results.with_name("report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("study-policies", "missing.yaml"), "config 'missing.yaml' cannot be read"),
        (("study-policies", STUDY, "budgets=[1000]"), "1000 visual tokens cannot be kept, there are 144"),
        (("study-policies", STUDY, "samples=1000"), "samples is 1000, but there are 600 for validation"),
        (("study-report", "missing.jsonl"), "results 'missing.jsonl' cannot be read"),
        (("study-report", STUDY), "is not a JSON object"),
        (("study-report", STUDY.with_name("results.jsonl"), "--out", STUDY), "cannot be written: File exists"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("tokenprune: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
