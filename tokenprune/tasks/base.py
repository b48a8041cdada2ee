"""The base class of tasks and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tokenprune.core.registry import Registry
from tokenprune.core.sample import Sample

TASKS: Registry[Task]
MEAN = "score"  # name of the mean score among metrics


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A set of questions about images or videos. Subclasses are frozen dataclasses; their fields are the options."""

    @abstractmethod
    def samples(self) -> Sequence[Sample]:
        """All questions of the set, with the same content and order on each call."""

    def finish(self, text: str) -> str:
        """The answer in what was generated: without stop strings or reasoning, say. Here all of it."""
        return text

    def score(self, sample: Sample, answer: str) -> float | None:
        """How right an answer is, in [0, 1], or None if this sample has no score of its own.

        Exact match, but for case, spaces and a final stop, unless overridden.
        """
        return float(_plain(answer) == _plain(sample.answer))

    def unparsed(self, sample: Sample, answer: str) -> bool:
        """Whether the task cannot read the answer, and counts it by a rule; overridden by tasks that read answers."""
        return False

    def metrics(self, answers: Sequence[tuple[Sample, str]]) -> Mapping[str, float]:
        """Metrics of the whole set by name, such as an F1; here none, so that the mean score is what counts.

        Args:
            answers: all samples with their finished answers, in the order of ``samples``.
        """
        return {}

    @property
    def primary(self) -> str:
        """Which of ``metrics`` the task is known by; ``score`` is the mean of the samples' scores."""
        return MEAN

    @property
    def title(self) -> str:
        """What tables call the primary metric, such as ``POPE F1``; empty for the task's name and accuracy."""
        return ""

    @property
    def scale(self) -> float:
        """By what tables multiply the primary metric: 100 for a share that is printed in per cent."""
        return 100.0

    @property
    def max_new_tokens(self) -> int:
        """Longest answer, tokens, unless the configuration says otherwise."""
        return 4

    def fingerprint(self) -> str:
        """What decides about prompts and scores outside the task's source, such as another package's version."""
        return ""


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .")


TASKS = Registry("task", package="tokenprune.tasks", group="tokenprune.tasks")


def register_task(name: str, *, paper: str | None = None) -> Callable[[type[Task]], type[Task]]:
    """Class decorator that makes a task known to the CLI and YAML files.

    Args:
        name: public name; also that of its file and YAML file.
        paper: URL of the paper that introduced the data set.

    Raises:
        RegistryError: if the name is malformed or taken.
    """
    return TASKS.register(name, paper=paper)
