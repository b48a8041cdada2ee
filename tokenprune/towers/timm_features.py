"""Features of another encoder at the places of the visual tokens: of a vision model of timm (DINOv2, SigLIP, ...).

The pictures that the MLLM's vision tower sees - an image, its tiles, the frames of a video - are taken out of its
pixels: their normalisation is undone, each is resized to what the other model wants, and normalised as it wants. Its
patches of the last block, after the final norm, are interpolated to the places of which the MLLM makes visual tokens,
and arranged as it arranges them. No paper says how; this is ours.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from tokenprune.core.errors import ModelError
from tokenprune.core.placement import device_of
from tokenprune.core.precision import exact, modules_as_usual

TIMM = "timm:"
LOCAL = "local-dir"
PLACES = ("hf-hub", LOCAL)  # where timm finds models that it does not know by name


@dataclass(frozen=True)
class EncoderSize:
    """Another encoder, whose features a pruner compares.

    Attributes:
        channels: of its features.
        flops: for one picture: an image, or a tile of one.
    """

    channels: int
    flops: int


class TimmEncoder:
    """A vision model of timm as a source of features.

    Args:
        model: of timm, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(model)
        weight = next(model.parameters())
        self.model, self.size = model, config["input_size"][1:]
        self.mean, self.std = (weight.new_tensor(config[name])[:, None, None] for name in ("mean", "std"))

    def patches(self, pictures: Tensor) -> Tensor:
        """Features (I, C, height, width) of the patches of pictures (I, 3, H, W), RGB in [0, 1], of any size."""
        resized = interpolate(pictures.to(self.mean), tuple(self.size), mode="bicubic", antialias=True).clamp(0, 1)
        options = {"norm": True, "output_fmt": "NCHW", "intermediates_only": True}
        with exact(resized.device):
            found: list[Tensor] = self.model.forward_intermediates(
                (resized - self.mean) / self.std, indices=1, **options
            )
        return found[-1]


def denormalised(pixels: Tensor, processor: Any) -> Tensor:
    """RGB in [0, 1], (..., 3, H, W), of pixels that an image or video processor normalised."""
    if not getattr(processor, "do_normalize", False):
        return pixels.float()
    mean, std = (pixels.new_tensor(getattr(processor, name)).float() for name in ("image_mean", "image_std"))
    return (pixels.float() * std[:, None, None] + mean[:, None, None]).clamp(0, 1)


def check_encoder(source: str) -> None:
    """Raise ModelError if ``timm:<model>`` names a model that timm does not know; it loads nothing."""
    import timm

    name = source.removeprefix(TIMM)
    place, colon, rest = name.partition(":") if ":" in name else ("", "", name)
    if colon and (place not in PLACES or not rest):
        raise ModelError(f"unknown timm model {name!r} in features; before a colon may be {' or '.join(PLACES)}")
    if place == LOCAL and not Path(rest).is_dir():
        raise ModelError(f"timm model {name!r} in features: folder {rest!r} does not exist")
    if not colon and not timm.is_model(name):
        near = ", ".join(get_close_matches(name, timm.list_models(), n=5, cutoff=0.3))
        raise ModelError(f"unknown timm model {name!r} in features; near names: {near or 'none'}")


@functools.cache
def encoder_size(source: str) -> EncoderSize:
    """What the features that ``timm:<model>`` names cost; no weights are loaded.

    Raises:
        ModelError: if timm does not know the model, or it cannot be made or gives no features of patches.
    """
    import timm

    check_encoder(source)
    name = source.removeprefix(TIMM)
    try:
        with torch.device("meta"):  # shapes alone, of which the counter counts
            encoder = TimmEncoder(timm.create_model(name, pretrained=False, num_classes=0).eval())
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                patches = encoder.patches(torch.zeros(1, 3, *encoder.size))
    except Exception as error:  # whatever a model of timm raises
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"features of timm model {name!r} cannot be counted ({reason})") from error
    return EncoderSize(patches.shape[1], counter.get_total_flops())


_LOADED: WeakKeyDictionary[nn.Module, dict[tuple[str, torch.device], TimmEncoder]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def load_encoder(model: Any, source: str) -> TimmEncoder:
    """The encoder that ``timm:<model>`` names, on the device of an MLLM; loaded once and kept while that lives.

    Raises:
        ModelError: if timm cannot load it.
    """
    check_encoder(source)
    with _LOCK:
        device = device_of(model, torch.device("cpu"))
        loaded, key = _LOADED.setdefault(model, {}), (source, device)
        if key not in loaded:
            loaded[key] = _load(source.removeprefix(TIMM), device)
    return loaded[key]


def _load(name: str, device: torch.device) -> TimmEncoder:
    import timm

    try:
        with modules_as_usual():
            model = timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"timm model {name!r} cannot be loaded ({reason})") from error
    if not hasattr(model, "forward_intermediates"):
        raise ModelError(f"timm model {name!r} gives no features of patches")
    return TimmEncoder(model.eval().to(device))
