"""The base class of tasks and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenprune.core.registry import Registry
from tokenprune.core.sample import Sample

TASKS: Registry[Task]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A set of questions about images or videos. Subclasses are frozen dataclasses; their fields are the options."""

    @abstractmethod
    def samples(self) -> Sequence[Sample]:
        """All questions of the set, with the same content and order on each call."""

    def score(self, sample: Sample, answer: str) -> float:
        """How right an answer is, in [0, 1]: exact match, but for case, spaces and a final stop, unless overridden."""
        return float(_plain(answer) == _plain(sample.answer))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .")


TASKS = Registry("task", package="tokenprune.tasks")


def register_task(name: str, *, paper: str | None = None) -> Callable[[type[Task]], type[Task]]:
    """Class decorator that makes a task known to the CLI and YAML files.

    Args:
        name: public name; also that of its file and YAML file.
        paper: URL of the paper that introduced the data set.

    Raises:
        RegistryError: if the name is malformed or taken.
    """
    return TASKS.register(name, paper=paper)
