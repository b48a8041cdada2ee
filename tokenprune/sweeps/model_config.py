"""Which model a run is on, and how it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenprune.core.errors import ConfigError

EMBEDDED = "embedded"  # the model that ships with the package


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model runs, and how.

    Attributes:
        name: ``embedded``, or an adapter's name.
        path: hub id or folder of the checkpoint; none for ``embedded``.
        dtype: of the weights.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        attention: attention implementation.
        text_tower: hub id or folder of the CLIP or SigLIP that pairs with the vision tower, or
            ``open_clip:<model>[@<tag>]``; None lets the adapter find it.
        scope: which segment a pruner chooses among, see ``ModelAdapter.scopes``; None is the adapter's default.
        device_map: ``auto`` lets accelerate spread the weights over all GPUs and the main memory; ``device`` is unused.
        processor: options of the image and video processor, such as ``max_pixels``; each goes to those that know it.
        system: what the system says before each question; empty leaves that to the chat template.
        square: ``pad`` puts pictures in the middle of squares of the processor's mean colour.
    """

    name: str = EMBEDDED
    path: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    device: str = "cpu"
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = "sdpa"
    text_tower: str | None = None
    scope: str | None = None
    device_map: Literal["auto"] | None = None
    processor: Mapping[str, Any] = field(default_factory=dict, hash=False)
    system: str = ""
    square: Literal["none", "pad"] = "none"

    def __post_init__(self) -> None:
        if self.name == EMBEDDED and self.path is not None:
            raise ConfigError(f"{self.name!r} takes no path")
        if self.name != EMBEDDED and not self.path:
            raise ConfigError(f"{self.name!r} needs a path: a hub id or the folder of a checkpoint")
