"""YAML key ``imports``: a file of a user's own registers what the configuration names."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenprune.cli.main import app
from tokenprune.core.errors import ConfigError
from tokenprune.pruners.base import PRUNERS
from tokenprune.sweeps.config import load_config
from tokenprune.sweeps.imports import absolute_paths

METHOD = """
from dataclasses import dataclass
import tokenprune as tp

@tp.register_pruner("every_other")
@dataclass(frozen=True, kw_only=True)
class EveryOther(tp.ScorePruner):
    \"\"\"Keeps every other token.\"\"\"

    def score(self, tokens):
        return -(tokens.features.new_ones(tokens.features.shape[:2]).cumsum(1) % 2)
"""
CONFIG = """
imports: [methods/mine.py]
task: {name: scenes, num_samples: 4}
pruner: every_other
budget: {keep_tokens: 24}
timing_repeats: 0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    PRUNERS.names()
    monkeypatch.setattr(PRUNERS, "_entries", dict(PRUNERS._entries))
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/mine.py").write_text(METHOD)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", ["run", pytest.param("sweep", marks=pytest.mark.full)])
def test_the_command_line_sees_a_file_s_pruner(folder, command):
    done = run(command, str(folder / "run.yaml"), f"output={folder}/runs")
    assert done.exit_code == 0, done.output
    (results,) = folder.glob("runs/**/results.jsonl")
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [record["label"] for record in records] == ["none", "random", "every_other"]
    assert f"- {folder}/methods/mine.py" in (results.parent / "config.yaml").read_text()
    if command == "run":  # what was written runs again, from anywhere
        assert load_config(results.parent / "config.yaml").imports == (str(folder / "methods/mine.py"),)


def test_configurations_without_imports_are_written_as_before(folder):
    (folder / "plain.yaml").write_text(
        CONFIG.replace("imports: [methods/mine.py]", "").replace("every_other", "uniform")
    )
    assert "imports" not in load_config(folder / "plain.yaml").to_mapping()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"imports: there is no Python file '.*mine.py'"),
        ("1 +", r"mine.py' \(line 1\): SyntaxError"),
        ("\nimport no_such_module", r"mine.py' \(line 2\): ModuleNotFoundError: No module named 'no_such_module'"),
        (METHOD.replace("every_other", "Every Other"), r"pruner name 'Every Other' is malformed"),
        (METHOD.replace("every_other", "random"), r"pruner name 'random' is taken"),
    ],
)
def test_what_is_wrong_with_a_file(folder, text, message):
    file = folder / "methods/mine.py"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(folder / "run.yaml")


def test_what_is_no_list_of_files():
    assert absolute_paths("a.py", Path("/x")) == ["/x/a.py"]
    with pytest.raises(ConfigError, match="imports must be a list of Python files, got 3"):
        absolute_paths(3, Path("/x"))


def test_a_mistake_is_a_sentence_and_status_2(folder):
    (folder / "methods/mine.py").write_text("raise ValueError('not today')")
    done = run("run", str(folder / "run.yaml"))
    assert done.exit_code == 2
    assert "(line 1): ValueError: not today" in " ".join(done.output.split())
