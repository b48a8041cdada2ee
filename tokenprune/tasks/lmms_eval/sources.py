"""Where lmms-eval's tasks are written: their YAML files, what these include, and the code that they call."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenprune.core.errors import ConfigError, hint

TESTED = ("0.7.3",)
INSTALL = f"pip install 'tokenprune-mllm[eval]' && pip install --no-deps lmms-eval=={TESTED[-1]}"
TASK_LINE = re.compile(r"^task\s*:\s*[\"']?([\w.\-]+)[\"']?\s*(?:#.*)?$", re.MULTILINE)
INCLUDE = re.compile(r"^include\s*:\s*[\"']?([^\"'\s]+)[\"']?\s*$", re.MULTILINE)
FUNCTION = re.compile(r"!function\s+([\w.]+)\.\w+")
JUDGED = re.compile(r"get_server|llm_judge|openai|requests\.post|get_chat_response", re.IGNORECASE)


def check_installed(unchecked: bool) -> str:
    """The version of lmms-eval; its own import takes seconds and is not needed for it.

    Args:
        unchecked: take a version that is not tested.

    Raises:
        ConfigError: if it is not installed, or of a version that is not tested.
    """
    try:
        found = importlib.metadata.version("lmms-eval")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"task 'lmms_eval' needs the package lmms-eval, which is not installed: {INSTALL}") from None
    if found not in TESTED and not unchecked:
        raise ConfigError(
            f"lmms-eval {found} is installed, and only {', '.join(TESTED)} is tested: prompts or scores may differ; "
            f"install that, or set task.unchecked to true"
        )
    return found


def find_yaml(task: str, include: str | None) -> Path:
    """The YAML file of a task.

    Args:
        task: its name.
        include: folder of further YAML files, which go before lmms-eval's own; None for none.

    Raises:
        ConfigError: if there is no such folder, or no such task in it or in lmms-eval.
    """
    if include is not None and not Path(include).is_dir():
        raise ConfigError(f"task.include {include!r} is not a folder")
    spec = importlib.util.find_spec("lmms_eval")
    own = [Path(place) / "tasks" for place in (spec.submodule_search_locations if spec else None) or ()]
    known: dict[str, Path] = {}
    for folder in [*([Path(include)] if include else []), *own]:
        for path in sorted(folder.rglob("*.yaml")):
            for name in TASK_LINE.findall(path.read_text(encoding="utf-8", errors="replace")):
                known.setdefault(name, path)
        if task in known:
            return known[task]
    near = hint(task, known).partition("? Allowed")
    raise ConfigError(f"lmms-eval has no task {task!r}; {near[0] + '?' if near[1] else 'lmms-eval tasks lists them'}")


def written_files(path: Path) -> Iterator[Path]:
    """A task's YAML file, those that it includes, and the modules whose functions they name."""
    text = path.read_text(encoding="utf-8", errors="replace")
    yield path
    for name in sorted(set(FUNCTION.findall(text))):
        module = path.parent / f"{name.replace('.', '/')}.py"
        if module.is_file():
            yield module
    for name in INCLUDE.findall(text):
        included = Path(name) if Path(name).is_file() else path.parent / name
        if included.is_file():
            yield from written_files(included)


def source_hash(path: Path) -> str:
    """Hash of all files that a task is written in."""
    total = hashlib.sha256()
    for file in written_files(path):
        content = file.read_bytes()
        total.update(len(content).to_bytes(8, "big") + content)
    return total.hexdigest()[:16]


def asks_a_judge(function: Callable[..., Any]) -> str | None:
    """What a function that scores may ask a language model or a server with; None if nothing like it can be reached.

    Followed are names within its own module; what it imports is not read.
    """
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    if code is None or not Path(code.co_filename).is_file():
        return None
    text = Path(code.co_filename).read_text(encoding="utf-8", errors="replace")
    named: dict[str, list[ast.stmt]] = {}
    for statement in ast.parse(text).body:
        for name in _defines(statement):
            named.setdefault(name, []).append(statement)
    left, seen = [function.__name__], set[str]()
    while left:
        name = left.pop()
        seen.add(name)
        for statement in named.get(name, ()):
            if found := JUDGED.search(ast.get_source_segment(text, statement) or ""):
                return f"{name} names {found[0]}"
            left += [n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id not in seen]
    return None


def _defines(statement: ast.stmt) -> list[str]:
    """Names that a statement of a module gives a meaning to."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in statement.names]
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
