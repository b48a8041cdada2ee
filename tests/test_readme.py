"""The README and CONTRIBUTING say what is so: their tables are the registries, and their code runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokenprune.adapters.registry import ADAPTERS
from tokenprune.cli.catalogue import by_idea, where_and_reads
from tokenprune.pruners.base import PRUNERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def block(text, marker):
    """The Python block after a ``<!-- tested: ... -->`` comment."""
    return re.search(rf"<!-- tested: {re.escape(marker)}.*?-->\n```python\n(.*?)```", text, re.DOTALL)[1]


def shipped(registry):
    return [e for e in map(registry.entry, registry.names()) if e.target.__module__.startswith("tokenprune.")]


def path_of(entry):
    path = entry.target.__module__.replace(".", "/")
    return f"{path}/" if (ROOT / path).is_dir() else f"{path}.py"


def row_of(idea, entry):
    where, reads = where_and_reads(entry)
    paper = f"[{entry.year}]({entry.paper})" if entry.paper else "–"
    return f"| {idea} | [`{entry.name}`]({path_of(entry)}) | {entry.summary} | {where} | {reads or '–'} | {paper} |"


def test_table_of_methods_is_the_registry():
    groups = by_idea(shipped(PRUNERS))
    rows = [row_of(idea, entry) for idea, entries in groups.items() for entry in entries]
    table = ["| idea | method | what it keeps | where | reads | paper |", "|---|---|---|---|---|---|", *rows]
    assert "\n".join(table) in README


def test_table_of_models_is_the_registry():
    rows = [
        f"| `{e.name}` | {e.summary} | `{e.target.example}` | [{path_of(e)}]({path_of(e)}) |" for e in shipped(ADAPTERS)
    ]
    table = ["| adapter | what it serves | a model | file |", "|---|---|---|---|", *rows]
    assert "\n".join(table) in README


def test_every_pruner_has_its_yaml_and_its_test():
    for entry in shipped(PRUNERS):
        assert (ROOT / path_of(entry)).stem == entry.name
        assert (ROOT / "configs" / "pruner" / f"{entry.name}.yaml").exists()
        assert len([*(ROOT / "tests/pruners").rglob(f"test_{entry.name}.py")]) == 1


def test_example_runs_and_prunes(capsys):
    code = block(README, "tests/test_readme.py")
    assert len(code.splitlines()) <= 15
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert scope["trace"].keep.shape == (1, 24)
    assert scope["sample"].question in printed


def test_links_lead_somewhere():
    for text, folder in (
        (README, ROOT),
        (CONTRIBUTING, ROOT),
        *((p.read_text(), p.parent) for p in (ROOT / "docs").glob("*.md")),
    ):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert target.startswith("https://") or (folder / target).exists(), target


@pytest.fixture
def outside(tmp_path):
    """A package that is no part of this one: the file of CONTRIBUTING and an entry point that names it."""
    (tmp_path / "large_norm.py").write_text(block(CONTRIBUTING, "tests/test_readme.py"))
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tokenprune.pruners]\nlarge_norm = large_norm\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1", "COLUMNS": "140"}


def command(environment, *arguments):
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_pruner_from_outside_is_in_the_cli(outside):
    """Its contract is in testing/test_third_party."""
    app = "from tokenprune.cli.main import app"
    listing = command(
        outside, "-c", f"{app}; app(['list', 'pruners'], standalone_mode=False); app(['show', 'large_norm'])"
    )
    assert "large_norm" in listing
    assert "https://example.org/my-paper" in listing
    assert "positions" in listing
