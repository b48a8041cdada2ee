"""A registry maps a public name to a class, for what the package ships and for third parties' entry points alike."""

from __future__ import annotations

import importlib
import pkgutil
import re
import warnings
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from tokenprune.core.errors import RegistryError, hint

T = TypeVar("T")
V = TypeVar("V")
_ARXIV = re.compile(r"arxiv\.org/abs/(\d\d)\d\d\.")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered class.

    Attributes:
        name: public name, also that of its file, YAML file and test file.
        target: the class.
        summary: first line of its docstring.
        paper: URL of the paper, or None.
        idea: what it has in common with others of its kind, by which lists are grouped; None for kinds without groups.
    """

    name: str
    target: type[T]
    summary: str
    paper: str | None
    idea: str | None = None

    @property
    def year(self) -> int | None:
        """The year of the paper, off its arXiv number; None for other papers."""
        number = _ARXIV.search(self.paper or "")
        return 2000 + int(number[1]) if number else None


class Registry(Generic[T]):
    """A registry, which finds classes by their public names.

    Args:
        kind: what is registered, singular, for messages: ``pruner``.
        package: package whose modules register the built-in ones when imported, or None.
        group: entry-point group of third parties, or None. An entry point names a module or a class that registers
            itself when it is imported.
    """

    def __init__(self, kind: str, package: str | None = None, group: str | None = None) -> None:
        self.kind, self.package, self.group = kind, package, group
        self.broken: dict[str, str] = {}
        self._entries: dict[str, Entry[T]] = {}
        self._discovered = False

    def register(self, name: str, *, paper: str | None = None, idea: str | None = None) -> Callable[[type[T]], type[T]]:
        """Decorator that registers a class.

        Args:
            name: lower case letters, digits and underscores, starting with a letter.
            paper: URL of the paper.
            idea: see ``Entry``.

        Raises:
            RegistryError: if the name is malformed, or another class has it. The same class, defined again (a notebook
                cell run twice), replaces its older self.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RegistryError(f"{self.kind} name {name!r} is malformed: use lower case letters, digits and '_'")

        def add(target: type[T]) -> type[T]:
            if self.package and not target.__module__.startswith(self.package):
                self._discover()  # so that a name that the package has is taken from the beginning
            taken = self._entries.get(name)
            if taken and (taken.target.__module__, taken.target.__qualname__) != (
                target.__module__,
                target.__qualname__,
            ):
                owner = f"{taken.target.__module__}.{taken.target.__qualname__}"
                raise RegistryError(f"{self.kind} name {name!r} is taken by {owner}; choose another")
            summary = (target.__doc__ or "").strip().partition("\n")[0]
            self._entries[name] = Entry(name, target, summary, paper, idea)
            return target

        return add

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._discover()
        return sorted(self._entries)

    def entry(self, name: str) -> Entry[T]:
        """What is registered under a name.

        Raises:
            RegistryError: if nothing is.
        """
        self._discover()
        if name in self._entries:
            return self._entries[name]
        if name in self.broken:
            raise RegistryError(f"{self.kind} plug-in {name!r} failed to import: {self.broken[name]}")
        raise RegistryError(f"unknown {self.kind} {name!r}; {hint(name, self._entries)}")

    def get(self, name: str) -> type[T]:
        """The class registered under a name.

        Raises:
            RegistryError: if there is none.
        """
        return self.entry(name).target

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def _discover(self) -> None:
        """Import what registers itself; once, and only when somebody asks, so that importing tokenprune stays cheap."""
        if self._discovered:
            return
        self._discovered = True
        if self.package:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group) if self.group else ():
            self._load(point)

    def _load(self, point: EntryPoint) -> None:
        try:
            point.load()
        except Exception as error:  # a stranger's import can fail in any way; it must not take the others with it
            self.broken[point.name] = f"{type(error).__name__}: {error} (entry point {point.value!r})"
            warnings.warn(f"{self.kind} plug-in {point.name!r} is ignored: {self.broken[point.name]}", stacklevel=4)


def enter(kind: str, known: MutableMapping[str, V], name: str, value: V) -> None:
    """Make a value that is no class known under a name.

    Args:
        kind: of the thing, singular, for messages: ``kernel``.
        known: all of them; the value is added.
        name: lower case letters, digits and underscores, starting with a letter.
        value: the thing.

    Raises:
        RegistryError: if the name is malformed or taken.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RegistryError(f"{kind} name {name!r} is malformed: use lower case letters, digits and '_'")
    if name in known:
        raise RegistryError(f"{kind} name {name!r} is taken; choose another")
    known[name] = value
