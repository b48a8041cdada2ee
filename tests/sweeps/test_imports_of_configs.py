"""YAML key ``imports``: a file of a user's own registers what the configuration names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tokenprune.core.errors import ConfigError
from tokenprune.pruners.base import PRUNERS
from tokenprune.sweeps.config import load_config
from tokenprune.sweeps.imports import resolved

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


def run(*arguments, cwd):
    command = [sys.executable, "-m", "tokenprune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_the_command_line_sees_a_file_s_pruner(folder, command):
    done = run(command, str(folder / "run.yaml"), f"output={folder}/runs", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    (results,) = folder.glob("runs/**/results.jsonl")
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [record["label"] for record in records] == ["none", "random", "every_other"]
    assert f"- {folder}/methods/mine.py" in (results.parent / "config.yaml").read_text()
    if command == "run":  # what was written runs again, from anywhere
        again = run("run", str(results.parent / "config.yaml"), cwd=Path("/"))
        assert again.returncode == 0, again.stderr


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
    assert resolved("a.py", Path("/x")) == ["/x/a.py"]
    with pytest.raises(ConfigError, match="imports must be a list of Python files, got 3"):
        resolved(3, Path("/x"))


def test_a_mistake_is_a_sentence_and_status_2(folder):
    (folder / "methods/mine.py").write_text("raise ValueError('not today')")
    done = run("run", str(folder / "run.yaml"), cwd=folder)
    assert done.returncode == 2
    assert "(line 1): ValueError: not today" in done.stderr
    assert "Traceback" not in done.stderr
