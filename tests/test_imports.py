"""Who may import whom: the table of docs/concepts, held by reading the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tokenprune"
METHOD, ADAPTER, BASE, OTHER, FUNCTION = 160, 300, 312, 250, 40  # lines

# A part is a folder of the package, or a file in its root. What it may import of the package, besides itself.
MAY = {
    "core": "",
    "functional": "core",
    "conditioning": "core functional",
    "pruners": "core functional conditioning",
    "towers": "core functional",
    "adapters": "core functional towers",
    "engine": "core functional pruners towers adapters",
    "embedded": "core",
    "tasks": "core embedded",
    "costs": "core functional pruners towers adapters engine",
    "sweeps": "core functional pruners adapters engine embedded tasks costs version",
    "report": "core functional sweeps",
    "bench": "core pruners towers adapters engine costs sweeps report",
    "policies": "core functional pruners adapters engine costs tasks sweeps",
    "cli": "core pruners costs sweeps report bench policies version",
    "testing": "core functional conditioning pruners towers adapters engine embedded tasks costs sweeps report",
    "lmms_eval_plugin": "core pruners sweeps tasks",
    "version": "",
    "__main__": "cli",
    "__init__": "core pruners adapters engine embedded version",
}
THIRD_PARTY = {
    "wandb": {"sweeps"},
    "transformers": {"towers", "adapters", "engine", "embedded", "testing"},
    "pytest": {"testing"},
    "lmms_eval": {"tasks", "lmms_eval_plugin"},
    "datasets": {"tasks"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree):
    """Dotted names of all modules that a file imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            if node.module == "tokenprune":
                yield from (f"tokenprune.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file(path):
    tree, part = ast.parse(path.read_text()), part_of(path)
    names = set(imported(tree))
    ours = {name.split(".")[1] for name in names if name.startswith("tokenprune.")}
    assert ours <= {part, *MAY[part].split()}
    for package, allowed in THIRD_PARTY.items():
        if any(name.split(".")[0] == package for name in names):
            assert part in allowed, package
    assert path.name not in ("utils.py", "helpers.py", "common.py")
    assert "environ" not in path.read_text(), "no environment variable of our own"
    limit = {"adapters": ADAPTER, "engine": ADAPTER}.get(part, OTHER) if path.name != "base.py" else BASE
    if part == "pruners" and (path.name == "__init__.py" or path.parent.name == part) and path.name != "base.py":
        limit = METHOD
    assert len(path.read_text().splitlines()) <= limit
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= FUNCTION + docstring_lines(node), node.name


def test_lmms_eval_is_imported_where_a_benchmark_is_asked_for():
    for path in (PACKAGE / "tasks").rglob("*.py"):
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {name.split(".")[0] for node in top for name in imported(node)}
        assert not names & {"lmms_eval", "datasets", "loguru"}, path


def docstring_lines(node):
    has = ast.get_docstring(node) is not None
    return node.body[0].end_lineno - node.body[0].lineno + 1 if has else 0


def test_the_table_is_complete():
    assert {part_of(path) for path in FILES} == set(MAY)


def test_cheap_to_import():
    heavy = ("torch", "transformers", "wandb", "matplotlib")
    code = f"import sys, tokenprune.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
