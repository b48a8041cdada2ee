"""The scripts ``run.py`` and ``report.py`` of a study."""

import subprocess
import sys
from pathlib import Path

import pytest
from study import report, run

from tokenprune.testing.checkpoints import save_llava

ROOT = Path(__file__).parents[3]
STUDY = ROOT / "experiments/dop_additivity/study.yaml"
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


def call(script, *arguments):
    """As a user runs it, from anywhere."""
    command = [sys.executable, ROOT / "experiments/study" / script, *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What the script printed, and the file of results."""
    folder = tmp_path_factory.mktemp("study")
    model = f"model={{name: llava, path: {save_llava(folder / 'llava', clip=False)}}}"
    result = call("run.py", STUDY, model, f"output={folder}/out", *SMALL)
    return result, next((folder / "out").glob("*/results.jsonl"), None)


def test_run(done):
    result, results = done
    assert result.returncode == 0, result.stderr
    assert f"results: {results}" in result.stdout
    assert f"report: {results.with_name('report.md')}" in result.stdout
    assert "measuring plans" in result.stderr
    assert "# Study of depth-wise policies" in results.with_name("report.md").read_text()


@pytest.mark.full
def test_report_elsewhere(done, tmp_path):
    folder = done[1].parent
    result = call("report.py", folder, "--out", tmp_path / "new")
    assert result.returncode == 0, result.stderr
    written = tmp_path / "new" / folder.name / "report.md"
    assert f"report: {written}" in result.stdout
    assert written.read_text() == (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (run, ("missing.yaml",), "config 'missing.yaml' cannot be read"),
        (run, (STUDY, "budgets=[1000]"), "1000 visual tokens cannot be kept, there are 144"),
        (run, (STUDY, "samples=1000"), "samples is 1000, but there are 600 for validation"),
        (report, ("missing",), "results 'missing/results.jsonl' cannot be read"),
        (report, (ROOT / "experiments/dop_readings",), "is not a file of results that a study wrote"),
        (report, (STUDY.parent, "--out", STUDY), "cannot be written: Not a directory"),
    ],
)
def test_a_mistake_is_one_sentence(script, arguments, message, capsys):
    with pytest.raises(SystemExit) as left:
        script.main([str(argument) for argument in arguments])
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert told.startswith("study: ")
    assert message in told
    assert told.count("\n") == 1


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "study", interrupted)
    with pytest.raises(SystemExit) as left:
        run.main([str(STUDY)])
    assert left.value.code == 130
    assert "the same command goes on from there" in capsys.readouterr().err
