"""Python files that a configuration names, so that what they register can be used in it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from tokenprune.core.errors import ConfigError, TokenPruneError


def absolute_paths(given: object, folder: Path) -> list[str]:
    """Absolute paths of ``imports``, which are relative to the folder of the configuration.

    Args:
        given: what the configuration says: a path, or a list of paths.
        folder: of the configuration.

    Raises:
        ConfigError: if it says something else.
    """
    paths = [given] if isinstance(given, str) else given
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
        raise ConfigError(f"imports must be a list of Python files, got {given!r}")
    return [str((folder / path).resolve()) for path in paths]


def import_files(paths: Iterable[str]) -> None:
    """Import Python files, each once in a process.

    Args:
        paths: absolute.

    Raises:
        ConfigError: if one is no Python file, or raises when it is imported.
    """
    for path in map(Path, paths):
        if path.suffix != ".py" or not path.is_file():
            raise ConfigError(f"imports: there is no Python file {str(path)!r}")
        name = f"tokenprune_imports_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}.{path.stem}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their modules up
        try:
            spec.loader.exec_module(module)
        except TokenPruneError as error:
            del sys.modules[name]
            raise ConfigError(f"imports: {str(path)!r}: {error}") from None
        except Exception as error:  # whatever a user's file raises
            del sys.modules[name]
            line = error.lineno if isinstance(error, SyntaxError) else _line(error, path)
            where = f" (line {line})" if line else ""
            raise ConfigError(f"imports: {str(path)!r}{where}: {type(error).__name__}: {error}") from error


def _line(error: Exception, path: Path) -> int | None:
    """The line of a file in which an error was raised; None if it was elsewhere."""
    trace, found = error.__traceback__, None
    while trace is not None:
        found = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(path) else found
        trace = trace.tb_next
    return found
