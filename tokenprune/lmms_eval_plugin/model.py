"""A pruned model as lmms-eval runs models: its requests in, answers out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError, hint
from tokenprune.core.options import construct
from tokenprune.core.sample import Sample
from tokenprune.core.turn import Clip, hash_parts
from tokenprune.pruners.none import NoPruning
from tokenprune.sweeps.build import build_checkpoint
from tokenprune.sweeps.config import Part
from tokenprune.sweeps.make_parts import make_pruner
from tokenprune.sweeps.model_config import ModelConfig
from tokenprune.tasks.lmms_eval.question import question_of
from tokenprune.tasks.lmms_eval.rows import message_parts

MODEL = {field.name for field in dataclasses.fields(ModelConfig)} - {"name", "device"}
BUDGET = {field.name for field in dataclasses.fields(Budget)}
LENGTH = 128  # tokens of an answer where a task says nothing
Request = tuple[str, Any, Mapping[str, Any], int, str, str]  # text, messages of a row, generation, row, task, split


@dataclass(frozen=True, kw_only=True)
class Options:
    """What ``--model_args`` says beside the fields of ``ModelConfig`` and ``Budget``.

    Attributes:
        model: ``embedded``, or an adapter's name.
        pruner: name of the pruner.
        pruner_args: its options.
        seed: of a pruner that draws.
        num_frames: of a video; None for those that ``fps`` gives.
        fps: frames a second of a video.
        journal: file that gets a JSON line for each answer, at once; None for none.
    """

    model: str = "embedded"
    pruner: str = "none"
    pruner_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    num_frames: int | None = 8
    fps: float | None = None
    journal: str | None = None


@dataclass(frozen=True, eq=False)
class Message:
    """What a user's message holds, opened; a ``Turn``."""

    contents: tuple[Any, ...]

    @property
    def shape(self) -> tuple[Any, ...]:
        """Of each picture or video its kind and (width, height) in pixels."""
        shown = [part for part in self.contents if not isinstance(part, str)]
        return tuple(("video" if isinstance(part, Clip) else "image", part.size) for part in shown)

    @property
    def text(self) -> str:
        """All that is written."""
        return "\n".join(part for part in self.contents if isinstance(part, str))

    @property
    def length(self) -> int:
        """Characters of text."""
        return sum(len(part) for part in self.contents if isinstance(part, str))

    @property
    def digest(self) -> str:
        """Hash of what is written; nothing here is kept by it."""
        return hash_parts(self.text)

    def parts(self) -> tuple[Any, ...]:
        """Text, pictures and videos."""
        return tuple(part.convert("RGB") if hasattr(part, "convert") else part for part in self.contents)


class TokenPrune(lmms):
    """A pruned model behind lmms-eval's interface, for tasks that generate one answer.

    Args:
        batch_size: questions at a time.
        max_batch_size: lmms-eval gives it, and it is not used.
        device: of the weights; None for this process's GPU, or the CPU if there is none.
        **options: of ``--model_args``: fields of ``Options``, ``ModelConfig`` and ``Budget``.

    Raises:
        TokenPruneError: if an option is unknown or wrong; no weights are loaded then.
    """

    is_simple = False

    def __init__(
        self, batch_size: int | str = 1, max_batch_size: int | None = None, device: str | None = None, **options: Any
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ConfigError(f"batch_size must be a number of questions, got {batch_size!r}")
        own = {field.name for field in dataclasses.fields(Options)}
        for name in options:
            if name not in own | MODEL | BUDGET:
                raise ConfigError(f"model_args has no option {name!r}; {hint(name, own | MODEL | BUDGET)}")
        if isinstance(options.get("pruner_args"), str):
            options["pruner_args"] = _json(options["pruner_args"])
        self.options = construct(Options, {k: v for k, v in options.items() if k in own}, "model_args")
        model = {"name": self.options.model, "device": device or _device()}
        model |= {k: v for k, v in options.items() if k in MODEL}
        checkpoint = build_checkpoint(construct(ModelConfig, model, "model_args"))
        part = Part(self.options.pruner, dict(self.options.pruner_args))
        self.pruner = make_pruner(part, self.options.seed)[1]
        budget = {k: v for k, v in options.items() if k in BUDGET}
        self.budget = construct(Budget, budget, "model_args") if budget else None
        if self.budget is None and self.pruner.budget is None and not isinstance(self.pruner, NoPruning):
            raise ConfigError(f"pruner {part.name!r} needs a budget, such as keep_tokens=64, in model_args")
        if self.budget is not None:
            checkpoint.check_steps(self.pruner.steps(checkpoint.spec))
            checkpoint.adapter.check_budget(self.pruner, checkpoint.spec, self.budget)
        self.batch_size, self.session = int(batch_size), checkpoint.load()
        self.device = self.session.adapter.device

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Answer requests, those of one length and generation together.

        Raises:
            ConfigError: if one is to be answered by sampling.
        """
        found: dict[int, GenerationResult] = {}
        asked = [request.args for request in requests]
        for batch in self._batches(asked):
            for number, result in zip(batch, self._answer([asked[number] for number in batch]), strict=True):
                found[number] = result
        return [found[number] for number in range(len(asked))]

    def _batches(self, asked: Sequence[Request]) -> Iterator[list[int]]:
        """Numbers of the requests that go through the model together."""
        keys = [json.dumps(request[2], sort_keys=True, default=str) for request in asked]
        order = sorted(range(len(asked)), key=lambda number: (keys[number], len(asked[number][0])))
        batch: list[int] = []
        for number in order:
            if batch and (len(batch) == self.batch_size or keys[number] != keys[batch[0]]):
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def _answer(self, asked: Sequence[Request]) -> list[GenerationResult]:
        samples = [self._sample(request) for request in asked]
        found: dict[int, GenerationResult] = {}
        for shown in (True, False):  # a prompt without pictures never goes with one that has some
            numbers = [number for number, sample in enumerate(samples) if bool(sample.turn.shape) == shown]
            if numbers:
                results = self._generate([samples[number] for number in numbers], asked[numbers[0]][2], shown)
                found |= dict(zip(numbers, results, strict=True))
        self._write((request, found[number].text) for number, request in enumerate(asked))
        return [found[number] for number in range(len(asked))]

    def _sample(self, request: Request) -> Sample:
        _, messages, _, row, task, split = request
        where = f"row {row} of lmms-eval task {task!r}"
        contents = message_parts(
            messages(self.task_dict[task][split][row]), where, self.options.num_frames, self.options.fps
        )
        turn = Message(tuple(contents))
        return Sample(id=f"{task}/{row}", turn=turn, question=question_of(turn.text))

    @torch.no_grad()
    def _generate(self, samples: list[Sample], generation: Mapping[str, Any], shown: bool) -> list[GenerationResult]:
        if generation.get("do_sample") or float(generation.get("temperature") or 0) > 0:
            raise ConfigError(
                "a task asks for answers drawn at random (do_sample or temperature); they are greedy here"
            )
        prepared = self.session.prepare(samples)
        inputs: Any = prepared.inputs
        if shown:
            inputs = self.session.prune_inputs(inputs, self.pruner, self.budget, prepared.questions, samples=samples)
        length = int(generation.get("max_new_tokens") or LENGTH)
        texts = self.session.generate(inputs, max_new_tokens=length).output
        lengths = (inputs.inputs if shown else inputs)["attention_mask"].sum(1).tolist()
        until = generation.get("until") or []
        return [
            GenerationResult(_cut(text, until), TokenCounts(input_tokens=number))
            for text, number in zip(texts, lengths, strict=True)
        ]

    def _write(self, answers: Iterable[tuple[Request, str]]) -> None:
        if self.options.journal is None:
            return
        with Path(self.options.journal).open("a", encoding="utf-8") as file:
            for request, text in answers:
                file.write(
                    json.dumps({"task": request[4], "split": request[5], "row": request[3], "answer": text}) + "\n"
                )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: lmms-eval 0.7.3 cannot score any model by likelihood, as its evaluator makes text of the result."""
        raise ConfigError("tasks that are scored by likelihood are not supported; choose one that generates")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: an answer in one round alone is measured here."""
        raise ConfigError("tasks of several rounds are not supported; choose one of a single round")


def _cut(text: str, until: str | Sequence[str]) -> str:
    """An answer up to the first stop string; a blank line is none, as in lmms-eval's own class for Qwen2.5-VL."""
    for stop in [until] if isinstance(until, str) else until:
        text = text.partition(stop)[0] if stop.strip() else text
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(f"pruner_args is no JSON, such as '{{\"layer\": 2}}': {text!r}") from None


def _device() -> str:
    """This process's GPU under ``accelerate launch``, or the only one; the CPU if there is none."""
    if not torch.cuda.is_available():
        return "cpu"
    from accelerate import PartialState

    return str(PartialState().device)
