"""Whether a model of an unknown family can be pruned: a check on a toy prompt.

Two things are compared with the model itself: pruned inputs of which everything is kept with the inputs as they are,
bit for bit, and inputs that lost half of their visual tokens with the whole prompt in which these are masked. A model
whose language model masks in another way than a causal one, or whose prompt needs more than its ids, fails it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenprune.adapters.auto import AutoAdapter, Tiles, runs, unknown
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.selection import TokenSelection
from tokenprune.engine.prompt.encoded import Encoded
from tokenprune.engine.prompt.layout import Choice
from tokenprune.engine.prompt.left import Left
from tokenprune.engine.prompt.pruned import shortened_prompt
from tokenprune.engine.session import Session
from tokenprune.pruners.none import NoPruning

SIDE = 448  # pixels of the toy picture; what a processor makes of it is the nominal size of an image
TOLERANCE = 1e-2  # of the largest logit: half precision sums in another order


def auto_adapter(model: Any, processor: Any, **options: Any) -> AutoAdapter:
    """The adapter of a model that no other serves, once it has passed the check.

    Args:
        model: the model.
        processor: that belongs to it.
        **options: of ``ModelAdapter``.

    Raises:
        ModelError: if the model does not follow the conventions, or fails the check; says which part.
    """
    adapter = AutoAdapter(model, processor, **options)
    try:
        return _checked(adapter, options)
    except ModelError:
        raise
    except Exception as error:  # whatever an unknown model raises
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{unknown(model)} cannot be checked: {type(error).__name__}: {reason}") from error


@torch.no_grad()
def _checked(adapter: AutoAdapter, options: Mapping[str, Any]) -> AutoAdapter:
    """The adapter with what encoding a picture tells of its model."""
    inputs = Session(adapter).prepare([Sample.of(_picture(), "what is this?")]).inputs
    encoded, tiles = Session(adapter).encode(inputs), _tiles(adapter, inputs)
    found = AutoAdapter(
        adapter.model,
        adapter.processor,
        tiles=tiles if len(encoded.layout.sizes) > 1 else "none",
        visual_tokens=len(encoded.features),
        **options,
    )
    _check(found, inputs, Session(found).encode(inputs) if found.tiles != "none" else encoded)
    return found


def _tiles(adapter: AutoAdapter, inputs: Mapping[str, Any]) -> Tiles:
    """How an image that is encoded as several stands in the prompt."""
    return "together" if len(runs(adapter.placeholders(inputs["input_ids"]))) == 1 else "apart"


def _check(adapter: AutoAdapter, inputs: Mapping[str, Any], encoded: Encoded) -> None:
    everything = Session(adapter).prune_inputs(inputs, NoPruning(), encoded=encoded).inputs
    plain = adapter.model(**inputs, use_cache=False).logits
    if not torch.equal(adapter.model(**everything, use_cache=False).logits, plain):
        raise ModelError(f"{unknown(adapter.model)} gives other logits for images that are encoded beforehand")
    halves = [TokenSelection(torch.arange(0, number, 2)[None], number) for number in map(len, encoded.layout.units)]
    left = Left.of(encoded, [Choice((unit,), half) for unit, half in enumerate(halves)], [])
    short = shortened_prompt(adapter, inputs, left.kept, closed=None) | left.encoder_outputs(adapter)
    found = adapter.model(**short, use_cache=False).logits[0, -1]
    wanted = _masked(adapter, everything, encoded, left.kept).to(found.device)
    if not torch.allclose(found, wanted, rtol=0, atol=TOLERANCE * float(wanted.abs().max())):
        raise ModelError(
            f"{unknown(adapter.model)} does not do with fewer visual tokens what it does if the others are masked"
        )


def _masked(adapter: AutoAdapter, inputs: Mapping[str, Any], encoded: Encoded, kept: Tensor) -> Tensor:
    """Logits (vocabulary,) of the last token where dropped visual tokens are seen by themselves alone."""
    ids, model = inputs["input_ids"], adapter.model
    place = adapter.placeholders(ids)
    embeds = model.get_input_embeddings()(ids)
    embeds[place.to(embeds.device)] = encoded.features.to(embeds)
    seen = torch.ones_like(place)
    seen[place] = kept
    own = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
    allowed = own.new_ones(own.shape).tril() & (seen | own)
    mask = torch.zeros(allowed.shape, dtype=embeds.dtype, device=ids.device)
    mask = mask.masked_fill(~allowed, torch.finfo(embeds.dtype).min)[None, None]
    options = {"position_ids": inputs["position_ids"], "use_cache": False}
    logits: Tensor = model(inputs_embeds=embeds, attention_mask=mask, **options).logits[0, -1]
    return logits


def _picture() -> Image.Image:
    """A picture that is square, large enough for most towers, and nowhere flat."""
    ramp = np.add.outer(np.arange(SIDE), 2 * np.arange(SIDE))
    return Image.fromarray(np.stack([ramp % 251, ramp % 241, ramp % 239], 2).astype(np.uint8))
