"""The configuration of a bench: a checkpoint or a published model's sizes, pruners, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError
from tokenprune.core.options import construct
from tokenprune.core.to_yaml import to_plain
from tokenprune.sweeps.config import (
    Part,
    load_mapping,
    parse_budgets,
    parse_model,
    parse_pruner,
    parse_pruners,
)
from tokenprune.sweeps.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """A published model's sizes with random weights; what is measured does not depend on what weights mean.

    Attributes:
        card: name of a model card, such as ``llava-1.5-7b``.
        layers: of the LLM; None for all. The costs of a layer do not depend on how many there are.
        vision_layers: of the vision tower; None for all.
        dtype, device, attention, scope: see ``ModelConfig``.
    """

    card: str
    layers: int | None = None
    vision_layers: int | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    device: str = "cpu"
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = "sdpa"
    scope: str | None = None


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The configuration of a bench.

    Attributes:
        model: a checkpoint, or a card.
        task: gives a checkpoint its images and questions; a card gets one image of noise.
        pruner, baselines, budget, seed: as of a run; ``none`` and ``random`` are always among them.
        batch_sizes: prompts at a time.
        text_tokens: of a card's prompt, besides the visual tokens.
        new_tokens: generated for each prompt, at least 2.
        repeats: timed turns; in each, all rows of a batch size run once, one after the other.
        output: JSON file.
        imports: see ``RunConfig``.
    """

    model: ModelConfig | CardConfig = field(default_factory=ModelConfig)
    task: Part = field(default_factory=lambda: Part("scenes"))
    pruner: Part
    baselines: tuple[Part, ...] = ()
    budget: tuple[Budget, ...]
    seed: int = 0
    batch_sizes: tuple[int, ...] = (1,)
    text_tokens: int = 40
    new_tokens: int = 8
    repeats: int = 9
    output: str = "runs/bench.json"
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, least in {"text_tokens": 2, "new_tokens": 2, "repeats": 1, "seed": 0}.items():
            if getattr(self, key) < least:
                raise ConfigError(f"{key} must be at least {least}, got {getattr(self, key)}")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ConfigError(f"batch_sizes must be integers of at least 1, got {list(self.batch_sizes)}")

    def to_mapping(self) -> dict[str, Any]:
        """The configuration as plain mappings and lists, as one would write it in YAML."""
        mapping: dict[str, Any] = to_plain(self)
        return mapping if self.imports else {key: value for key, value in mapping.items() if key != "imports"}


def load_bench_config(path: Path | str, overrides: Sequence[str] = ()) -> BenchConfig:
    """Read a configuration file of a bench; arguments and errors as of ``sweeps.config.load_config``."""
    parsers: dict[str, Callable[[Any, str], Any]] = {
        "model": _model,
        "task": Part.of,
        "pruner": parse_pruner,
        "baselines": parse_pruners,
        "budget": parse_budgets,
    }
    given = {k: parsers[k](v, k) if k in parsers else v for k, v in load_mapping(path, overrides).items()}
    return construct(BenchConfig, given, "config")


def _model(value: Any, where: str) -> ModelConfig | CardConfig:
    if isinstance(value, Mapping) and "card" in value:
        return construct(CardConfig, dict(value), where)
    return parse_model(value, where)
