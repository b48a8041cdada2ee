"""Benchmarks of lmms-eval: its rows, prompts and scores; everything else is this package's.

Code: https://github.com/EvolvingLMMs-Lab/lmms-eval (MIT) 0.7.3
Differs:
    - Answers are greedy, and finished as its Qwen2.5-VL class does: reasoning in tags goes, and what ``until`` names
      cuts, a blank line excepted; its LLaVA classes do not cut.
    - Scores come from stored answers; each aggregation has a task made for it, as OCRBench's adds up in a module.
    - POPE, MME, GQA and ScienceQA have further metrics, which read the same answers as other harnesses do.
    - Videos are taken from where its tasks look for them, and not downloaded.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenprune.core.errors import ConfigError, DataError
from tokenprune.core.sample import Sample
from tokenprune.tasks.base import Task, register_task
from tokenprune.tasks.benchmarks import BENCHMARKS, REFUSED, Benchmark
from tokenprune.tasks.lmms_eval import scoring
from tokenprune.tasks.lmms_eval.further import further_metrics
from tokenprune.tasks.lmms_eval.loading import check_config, make_task, read_config
from tokenprune.tasks.lmms_eval.question import question_of
from tokenprune.tasks.lmms_eval.rows import Rows
from tokenprune.tasks.lmms_eval.sources import check_installed, find_yaml, source_hash

LENGTH = 128  # tokens of an answer where a task says nothing


@register_task("lmms_eval", paper="https://arxiv.org/abs/2407.12772")
@dataclass(frozen=True, kw_only=True)
class LmmsEval(Task):
    """A benchmark of lmms-eval, such as POPE, GQA or MME.

    Attributes:
        task: its name there, such as ``pope``; see ``tokenprune.tasks.benchmarks``.
        num_samples: so many rows, and more until units whose rows count together are whole; None for all.
        sample_seed: draws them, a unit at a time; None takes the first.
        root: folder that holds data sets by their hub ids; None for the hub, or its cache.
        prompts: whose prompts, as the task's file calls them; ``default`` for most models.
        prompt: replaces single values of these prompts, such as ``post_prompt``.
        num_frames: of a video; None for all that ``fps`` gives.
        fps: frames a second of a video; None for ``num_frames`` over its length.
        include: folder of further YAML files in lmms-eval's format.
        unchecked: run a task that is not in the table, or lmms-eval of another version.
    """

    task: str
    num_samples: int | None = None
    sample_seed: int | None = None
    root: str | None = None
    prompts: str = "default"
    prompt: Mapping[str, Any] = field(default_factory=dict, hash=False)
    num_frames: int | None = 8
    fps: float | None = None
    include: str | None = None
    unchecked: bool = False

    def __post_init__(self) -> None:
        if self.task in REFUSED:
            raise ConfigError(f"lmms-eval task {self.task!r} is refused: {REFUSED[self.task]}")
        for name, least in (("num_samples", 1), ("num_frames", 2)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"task.{name} must be at least {least}, got {value}")
        if self.fps is not None and self.fps <= 0:
            raise ConfigError(f"task.fps must be above 0, got {self.fps}")
        if self.num_frames is None and self.fps is None:
            raise ConfigError("task.num_frames and task.fps are both null; one says how a video is sampled")
        if self.root is not None and not Path(self.root).is_dir():
            raise DataError(f"task.root {self.root!r} is not a folder")

    def samples(self) -> Sequence[Sample]:
        """Read all rows; pictures are opened when they are asked about.

        Raises:
            ConfigError: if lmms-eval is missing or of another version, or the task is unknown or cannot be run.
            DataError: if its data set, a column, a picture or a video is missing.
        """
        rows, units = Rows(self._loaded, self.num_frames, self.fps), self._units()
        post = str((self._loaded.lmms_eval_specific_kwargs or {}).get("post_prompt") or "")
        return [self._sample(rows, row, units[row], post) for row in self._chosen(units)]

    def _sample(self, rows: Rows, row: int, unit: str, post: str) -> Sample:
        turn = rows.turn(row)
        kind = self._benchmark.kind
        return Sample(
            id=str(row),
            turn=turn,
            question=question_of(turn.text, post),
            answer=rows.answer(row),
            kind=str(rows.bare(row).get(kind) or "") if kind else "",
            unit=unit,
            row=row,
        )

    def _units(self) -> list[str]:
        """The unit of each row."""
        benchmark, docs = self._benchmark, self._loaded.eval_docs_no_media
        if not benchmark.unit:
            return [""] * len(docs)
        columns = [name for name in benchmark.unit if name in docs.column_names]
        units = [benchmark.unit_of(doc) for doc in docs.select_columns(columns)]
        for unit, number in Counter(units).items() if benchmark.unit_rows else ():
            if number != benchmark.unit_rows:
                each = "/".join(benchmark.unit)
                raise DataError(
                    f"lmms-eval task {self.task!r} needs {benchmark.unit_rows} rows of each {each}, "
                    f"and {unit!r} has {number}"
                )
        return units

    def _chosen(self, units: Sequence[str]) -> Sequence[int]:
        """Numbers of the rows that are taken, ascending."""
        if self.num_samples is None or self.num_samples >= len(units):
            return range(len(units))
        groups: dict[str, list[int]] = {}
        apart = self.sample_seed is None and not self._benchmark.whole
        for row, unit in enumerate(units):
            groups.setdefault(str(row) if apart or not unit else f"unit {unit}", []).append(row)
        order = list(groups.values())
        if self.sample_seed is not None:
            random.Random(self.sample_seed).shuffle(order)
        taken: list[int] = []
        for rows in order:
            if len(taken) >= self.num_samples:
                break
            taken += rows
        return sorted(taken)

    def finish(self, text: str) -> str:
        """The answer in what was generated: without reasoning in tags, up to the first of the task's stop strings."""
        until = (self._loaded.config.generation_kwargs or {}).get("until") or []
        text = scoring.without_reasoning(text)
        for stop in [until] if isinstance(until, str) else until:
            if stop.strip():
                text = text.partition(stop)[0]
        return text.strip()

    def score(self, sample: Sample, answer: str) -> float | None:
        """lmms-eval's score of one answer, in [0, 1]; None if the row has none by itself."""
        benchmark, result = self._benchmark, scoring.result_of(self._loaded, sample.row, answer)
        modulo = {benchmark.unit[0]: benchmark.unit_modulo} if benchmark.unit_modulo else {}
        return scoring.score_of(self._loaded, result, self.primary, modulo)

    def metrics(self, answers: Sequence[tuple[Sample, str]]) -> dict[str, float]:
        """lmms-eval's metrics of all answers, and those of other harnesses' readings.

        Raises:
            DataError: if an aggregation fails, such as MME's without both answers of a pair.
        """
        found = scoring.aggregate(self._make(), [(sample.row, answer) for sample, answer in answers])
        return found | further_metrics(self.task, found, answers)

    def unparsed(self, sample: Sample, answer: str) -> bool:
        """Whether an answer says nothing that the question could be answered with, whatever its score.

        A harness may draw an answer then (MMMU), so that it may be right.
        """
        benchmark = self._benchmark
        if benchmark.read is None or (benchmark.open_answers and benchmark.read(sample.answer) is None):
            return False
        return benchmark.read(str(scoring.filtered(self._loaded, self._row(sample.row), answer))) is None

    def _row(self, row: int) -> Any:
        return self._loaded.eval_docs_no_media[row]

    @property
    def primary(self) -> str:
        """The metric that papers print; of a task that is not in the table, its first."""
        return self._benchmark.primary or next(iter(self._loaded.aggregation()))

    @property
    def title(self) -> str:
        """What tables call the benchmark, and its metric where that is no accuracy."""
        return self._benchmark.title

    @property
    def scale(self) -> float:
        """Factor from the metric to the number that papers print."""
        return self._benchmark.scale

    @property
    def max_new_tokens(self) -> int:
        """Longest answer, tokens, as the task has it."""
        return int((read_config(self._yaml).get("generation_kwargs") or {}).get("max_new_tokens") or LENGTH)

    def fingerprint(self) -> str:
        """Hash of lmms-eval's version, the task's files and the prompts in use."""
        used = json.dumps(self._loaded.lmms_eval_specific_kwargs, sort_keys=True, default=str)
        parts = (check_installed(self.unchecked), source_hash(self._yaml), used)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def _benchmark(self) -> Benchmark:
        unknown = Benchmark(task=self.task, title=f"{self.task} (unchecked)", primary="", scale=1.0)
        return BENCHMARKS.get(self.task, unknown)

    @cached_property
    def _yaml(self) -> Path:
        check_installed(self.unchecked)
        path = find_yaml(self.task, self.include)
        if self.task not in BENCHMARKS and not self.unchecked:
            raise ConfigError(
                f"lmms-eval task {self.task!r} is not among those that are checked here; "
                f"task.unchecked: true runs it, and its tables say so"
            )
        return path

    @cached_property
    def _loaded(self) -> Any:
        return self._make()

    def _make(self) -> Any:
        """lmms-eval's task with its data, and with modules that nobody has used."""
        config = read_config(self._yaml)
        check_config(config, self.prompts, self.prompt, self.task not in BENCHMARKS)
        return make_task(config, self.prompts, self.prompt, self.root)
