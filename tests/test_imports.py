"""Who may import whom: the table of docs/concepts, held by reading the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tokenprune"
METHOD, ADAPTER, BASE, OTHER, FUNCTION = 150, 300, 310, 250, 40  # lines

CORE = "errors types budget registry version"
# A part is a top-level module or a sub-package. What it may import of the package, besides itself.
MAY = {
    **dict.fromkeys(CORE.split(), "errors types budget"),
    "spec": "errors",
    "signal": "",
    "surroundings": "",
    "types": "errors signal spec budget",
    "options": "errors",
    "functional": "errors surroundings",
    "metrics": "errors types",
    "conditioning": "errors types registry functional",
    "pruners": "errors types spec budget registry options functional conditioning search surroundings",
    "adapters": "errors types spec registry budget functional metrics surroundings",
    "embedded": "errors types budget adapters metrics pruners tasks",
    "tasks": "errors types registry embedded",
    "search": "errors types spec metrics options provenance",
    "written": "budget",
    "config": "errors budget options written",
    "provenance": "types version",
    "journal": "errors",
    "record": "errors config journal options provenance",
    "tracking": "errors registry",
    "labels": "errors config options pruners",
    "parts": "errors config labels options pruners registry",
    "build": "errors types registry budget config adapters embedded labels parts pruners tasks tracking",
    "keys": "types adapters build provenance tasks",
    "divergence": "types budget adapters functional pruners search",
    "layer_timing": "errors adapters search",
    "fit_config": "errors config options search",
    "measurements": "types budget adapters divergence journal layer_timing provenance pruners search",
    "fit": "types errors adapters build divergence fit_config journal measurements provenance pruners search",
    "study": "errors types budget options config build adapters divergence functional journal measurements pruners "
    "provenance search tasks",
    "study_report": "errors types metrics plots search study",
    "evaluate": "types errors build adapters metrics tasks trace",
    "tally": "types build metrics",
    "launch": "errors types registry budget config adapters build evaluate keys metrics parts provenance tasks",
    "sweep": "errors budget config provenance record",
    "state": "types adapters build keys launch record sweep tally",
    "adopt": "errors record state",
    "announce": "launch overlay record state tracking",
    "wandb_commands": "errors state sweep",
    "runner": "types errors adopt announce config launch metrics parts record state sweep tracking",
    "rows": "errors record",
    "plots": "rows",
    "overlay": "types plots",
    "comparison": "errors metrics record rows",
    "report": "errors types comparison overlay plots record rows",
    "catalogue": "errors options registry",
    "model_card": "errors types options adapters",
    "flops_table": "errors types adapters budget metrics pruners report",
    "flops_request": "errors types budget config adapters flops_table model_card pruners",
    "bench": "errors types adapters budget build config metrics model_card options provenance report trace written",
    "__main__": "cli",
    "cli": "errors version bench build catalogue cli_report cli_sweep config fit fit_config flops_request flops_table "
    "search study study_report",
    "cli_report": "errors types build comparison config record report",
    "cli_sweep": "config dry_run report runner sweep wandb_commands",
    "dry_run": "launch parts record state sweep",
    "trace": "errors types adapters",
    "open_class": "",
    "call_stack": "",
    "interception": "errors call_stack open_class",
    "generate_settings": "",
    "model_run": "errors adapters block trace",
    "handlers": "errors adapters interception",
    "block": "errors types budget adapters generate_settings handlers model_run pruners trace",
    "timm_vit": "errors types budget adapters functional interception pruners surroundings",
    "pruning": "errors types budget adapters pruners block handlers interception trace",
    "__init__": "*",
}
THIRD_PARTY = {"wandb": {"tracking"}, "transformers": {"adapters", "embedded"}}
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
    if MAY[part] != "*":
        assert ours <= {part, *MAY[part].split()}
    for package, allowed in THIRD_PARTY.items():
        if any(name.split(".")[0] == package for name in names):
            assert part in allowed, package
    assert path.name not in ("utils.py", "helpers.py", "common.py")
    assert "environ" not in path.read_text(), "no environment variable of our own"
    limit = {"pruners": METHOD, "adapters": ADAPTER}.get(part, OTHER) if path.name != "base.py" else BASE
    assert len(path.read_text().splitlines()) <= limit
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= FUNCTION + docstring_lines(node), node.name


def docstring_lines(node):
    has = ast.get_docstring(node) is not None
    return node.body[0].end_lineno - node.body[0].lineno + 1 if has else 0


def test_the_table_is_complete():
    assert {part_of(path) for path in FILES} == set(MAY)


def test_cheap_to_import():
    heavy = ("torch", "transformers", "wandb", "matplotlib")
    code = f"import sys, tokenprune.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
