"""The contrastive model that a vision tower comes from: its text tower, and the way of both into their shared space.

A checkpoint of an MLLM holds neither; ``find_source`` finds them, and they are loaded when a pruner needs them.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from tokenprune.core.errors import ModelError
from tokenprune.core.placement import device_of
from tokenprune.core.precision import modules_as_usual, on_cpu_unless_said

OPEN_CLIP = "open_clip:"
WANTED = {
    None: "a hub id or the folder of the CLIPModel or SiglipModel that the vision tower comes from",
    "clip": "a hub id or the folder of a CLIPModel or SiglipModel",
    "open_clip": "open_clip:<model>@<weights>",
}

# (model_type, layers, width, image and patch size in pixels) -> (Hugging Face id, open_clip model and weights)
KNOWN: dict[tuple[str, int, int, int, int], tuple[str, str]] = {
    ("clip_vision_model", 24, 1024, 336, 14): ("openai/clip-vit-large-patch14-336", "ViT-L-14-336-quickgelu@openai"),
    ("clip_vision_model", 24, 1024, 224, 14): ("openai/clip-vit-large-patch14", "ViT-L-14-quickgelu@openai"),
    ("clip_vision_model", 12, 768, 224, 16): ("openai/clip-vit-base-patch16", "ViT-B-16-quickgelu@openai"),
    ("clip_vision_model", 12, 768, 224, 32): ("openai/clip-vit-base-patch32", "ViT-B-32-quickgelu@openai"),
    ("siglip_vision_model", 27, 1152, 384, 14): ("google/siglip-so400m-patch14-384", "ViT-SO400M-14-SigLIP-384@webli"),
    ("siglip_vision_model", 27, 1152, 224, 14): ("google/siglip-so400m-patch14-224", "ViT-SO400M-14-SigLIP@webli"),
}
# Families that trained their SigLIP further: its own text tower fits it only nearly, so that none is taken unasked.
TUNED = frozenset({"gemma3", "idefics3", "llava_onevision", "paligemma", "smolvlm"})
MODULES = {"clip": "clip", "siglip": "siglip", "siglip2": "siglip"}  # by type of Hugging Face's model


class TextTower(ABC):
    """A text tower and both projections, in float32 and evaluation mode.

    Attributes:
        kind: which library it is of: ``clip`` is Hugging Face's.
        family: ``clip`` or ``siglip``, what the vision tower must be, too.
        width: V, of the patch features that ``project`` takes.
        context: tokens in one segment of text.
        pad: token id that fills up the last segment.
    """

    kind: ClassVar[str]
    family: str
    width: int
    context: int
    pad: int = 0

    @abstractmethod
    def project(self, patches: Tensor, *, normed: bool = False) -> Tensor:
        """Project hidden states of patches (..., V) to the shared space (..., C); ``normed``: after the last norm."""

    @abstractmethod
    def tokenize(self, text: str) -> Tensor:
        """Token ids (L,) long of a text, with those that mark its beginning and end, never truncated."""

    @abstractmethod
    def encode(self, segments: Tensor) -> Tensor:
        """Embed pieces of text: token ids (S, context) to (S, C) in the shared space."""

    @on_cpu_unless_said()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts of any length: each is cut into segments that go through the tower by themselves, as in CDPruner.

        Returns:
            (B, M, C) float32, not normalised. M is a common multiple of the texts' segments; a text of m segments is
            repeated M / m times, which leaves every mean over its segments as it is.
        """
        ids = [self.tokenize(text) for text in texts]
        counts = [math.ceil(len(row) / self.context) for row in ids]
        segments = torch.full((sum(counts), self.context), self.pad)
        for row, first, count in zip(ids, torch.tensor([0, *counts]).cumsum(0).tolist(), counts, strict=False):
            segments[first : first + count].view(-1)[: len(row)] = row
        embedded = torch.split(self.encode(segments), counts)
        common = math.lcm(*counts)
        return torch.stack([row.repeat(common // len(row), 1) for row in embedded])


def strip_padding(ids: Tensor, pad: int) -> Tensor:
    """Token ids (L,) without padding at the end, at least one of them."""
    last = (ids != pad).nonzero().flatten().tolist()[-1:] or [0]
    return ids[: last[0] + 1]


def find_source(config: Any, given: str | None, kind: str | None) -> str:
    """Where the paired tower of a model comes from.

    Args:
        config: of the model, with ``vision_config``.
        given: what the user named. If None, a sub-folder ``clip/`` of the checkpoint's folder (or ``open_clip/``, if
            the pruner insists on that), the vision tower's name in the config, or a table of known towers by their
            sizes, in this order. The table is not asked for families that trained their tower further.
        kind: ``clip`` (Hugging Face's, a SigLIP too) or ``open_clip`` if the pruner insists on one, else None.

    Returns:
        A hub id or folder, or ``open_clip:`` and what follows it.

    Raises:
        ModelError: if there is none, or it is of the wrong kind.
    """
    source = given or _search(config, kind)
    found = "open_clip" if source.startswith(OPEN_CLIP) else "clip"
    if kind is not None and kind != found:
        raise ModelError(f"the conditioning needs text_tower to be {WANTED[kind]}, got {source!r}")
    return source


def _search(config: Any, kind: str | None) -> str:
    vision, folder = config.vision_config, Path(getattr(config, "_name_or_path", "") or "")
    if kind == "open_clip" and folder.joinpath("open_clip", "open_clip_config.json").is_file():
        return OPEN_CLIP + str(folder / "open_clip")
    if kind != "open_clip":
        if folder.joinpath("clip", "config.json").is_file():
            return str(folder / "clip")
        if named := getattr(vision, "_name_or_path", ""):
            return str(named)
    sizes = (vision.model_type, vision.num_hidden_layers, vision.hidden_size, vision.image_size, vision.patch_size)
    what = WANTED[kind]
    if config.model_type in TUNED:
        raise ModelError(
            f"models of type {config.model_type!r} trained their SigLIP further, so that its text tower fits it only "
            f"nearly and is not taken unasked; give text_tower={what}, see docs/families.md"
        )
    hub, open_clip = KNOWN.get(sizes, (None, None))
    if hub and kind != "open_clip":
        return hub
    if open_clip and kind != "clip":
        return OPEN_CLIP + open_clip
    layers, width, pixels, patch = sizes[1:]
    sizes_in_words = f"{layers} layers, {width} wide, {pixels} pixels in patches of {patch}"
    raise ModelError(f"no text tower is known for this vision tower ({sizes_in_words}); give text_tower={what}")


_LOADED: WeakKeyDictionary[nn.Module, dict[tuple[str, torch.device], TextTower]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def load_text_tower(model: Any, given: str | None, kind: str | None) -> TextTower:
    """The paired tower of a model, on its device; loaded once and kept while the model lives.

    Raises:
        ModelError: if it cannot be found or loaded, or does not fit the vision tower.
    """
    source = find_source(model.config, given, kind)
    with _LOCK:
        device = device_of(model, torch.device("cpu"))
        loaded, key = _LOADED.setdefault(model, {}), (source, device)
        if key not in loaded:
            loaded[key] = _load(source, device)
    tower, vision = loaded[key], model.config.vision_config
    if (tower.family == "clip") != (vision.model_type == "clip_vision_model"):
        raise ModelError(f"text tower {source!r} is a {tower.family}, the vision tower is a {vision.model_type!r}")
    if tower.width != vision.hidden_size:
        raise ModelError(
            f"text tower {source!r} takes patches of width {tower.width}, the vision tower gives {vision.hidden_size}"
        )
    return tower


def _load(source: str, device: torch.device) -> TextTower:
    if source.startswith(OPEN_CLIP):
        module, name = "open_clip", source.removeprefix(OPEN_CLIP)
    else:
        module, name = MODULES[_model_type(source)], source
    with modules_as_usual():
        tower: TextTower = import_module(f"tokenprune.towers.text.{module}").load(name, device)
    return tower


def _model_type(source: str) -> str:
    """The ``model_type`` of a Hugging Face model, if it has two towers."""
    try:
        found = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"text tower {source!r} cannot be loaded ({reason}); give another text_tower=") from error
    if found not in MODULES:
        raise ModelError(f"text tower {source!r} is of type {found!r}; allowed: {', '.join(MODULES)}")
    return str(found)
