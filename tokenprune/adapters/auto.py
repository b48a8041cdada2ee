"""Any model that follows the conventions of transformers, once it has passed a check on a toy prompt.

The check compares two things with the model itself: pruned inputs of which everything is kept with the inputs as they
are, bit for bit, and inputs that lost half of their visual tokens with the whole prompt in which these are masked. A
model whose language model masks in another way than a causal one, or whose prompt needs more than its ids, fails it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.inputs import PIXELS, real_tokens
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import PROMPT, Signal
from tokenprune.core.sizes import ModelSpec
from tokenprune.engine.prompt.encoded import Encoded
from tokenprune.engine.prompt.layout import Choice
from tokenprune.engine.prompt.pruned import Left, shortened_prompt
from tokenprune.towers.items import Item, Unit
from tokenprune.towers.sizes import decoder_spec

SIDE = 448  # pixels of the toy picture; what a processor makes of it is the nominal size of an image
TOLERANCE = 1e-2  # of the largest logit: half precision sums in another order


class AutoAdapter(ModelAdapter):
    """Made only for models that no adapter serves; without signals of the vision tower, and checked before the LLM.

    Raises:
        ModelError: if the model does not follow the conventions, or fails the check; says which part.
    """

    model_types = ()
    offers = PROMPT
    example = ""
    any_size = True
    tiles: Literal["none", "together", "apart"] = "none"  # of an image, in the prompt

    def __init__(self, model: Any, processor: Any, **options: Any) -> None:
        kind = f"no adapter knows models of type {model.config.model_type!r}, and this one"
        for owner, name in ((model.config, "image_token_id"), (model.base_model, "get_image_features")):
            if getattr(owner, name, None) is None:
                raise ModelError(f"{kind} has no {name}; see docs/add_an_adapter.md")
        super().__init__(model, processor, **options)
        try:
            inputs = self.prepare([Sample("", _picture(), "what is this?", "")]).inputs
            with torch.no_grad():
                encoded = self.encode(inputs)
                if len(encoded.layout.sizes) > 1:  # one image is encoded as several
                    number = len(_runs(self.placeholders(inputs["input_ids"])))
                    self.tiles = "together" if number == 1 else "apart"
                    encoded = self.encode(inputs)
            self.spec = replace(self.spec, visual_tokens=len(encoded.features))
            self._check(inputs, encoded, kind)
        except ModelError:
            raise
        except Exception as error:  # whatever an unknown model raises
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(f"{kind} cannot be checked: {type(error).__name__}: {reason}") from error

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        """The language model alone; the number of visual tokens is that of the toy picture, found by encoding it."""
        text = config.get_text_config()
        return ModelSpec(llm=decoder_spec(text), vocabulary=text.vocab_size, visual_tokens=1)

    def vision_signals(
        self, modality: str, output: Any, inputs: Mapping[str, Any], requires: frozenset[Signal]
    ) -> dict[Signal, Tensor]:
        """None."""
        return {}

    def items(self, modality: str, output: Any, inputs: Mapping[str, Any]) -> list[Item]:
        """See ``ModelAdapter``; where an image is cut into tiles, what stands side by side in a prompt is one.

        If text is between the tiles, it is not known where an image ends, and all images of a prompt count as one.
        Where it is not known which pixels are whose, features stand for them, and a randomised pruner may treat an
        image in a batch otherwise than alone.
        """
        images, pixels = list(output.pooler_output), inputs[PIXELS[modality]]
        own = list(pixels) if len(pixels) == len(images) else images
        if self.tiles != "none":
            place = self.placeholders(inputs["input_ids"], modality)
            ends = _runs(place) if self.tiles == "together" else place.sum(1)
            images, own = _joined(images, own, ends.tolist())
        return [Item(x, [Unit(torch.arange(len(x)))], p) for x, p in zip(images, own, strict=True)]

    def shortened(self, output: Any, parts: list[Tensor], kept: list[Tensor]) -> Any:
        """See ``ModelAdapter``; a tensor if the encoder gave one, in which each visual token counts as an image."""
        whole = isinstance(output.pooler_output, Tensor)
        return BaseModelOutputWithPooling(pooler_output=torch.cat(parts)[:, None] if whole else parts)

    def positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """See ``ModelAdapter``; as the model itself says."""
        given = {**inputs, "attention_mask": real_tokens(inputs).long()}
        found: Tensor = self.model._prepare_position_ids_for_generation(inputs["input_ids"], given)
        if found.dim() != 2:
            raise ModelError(
                f"{type(self.model).__name__} has position ids of several axes; see docs/add_an_adapter.md"
            )
        return found

    @torch.no_grad()
    def _check(self, inputs: Mapping[str, Any], encoded: Encoded, kind: str) -> None:
        everything = self.prune_inputs(inputs, None, encoded=encoded).inputs
        plain = self.model(**inputs, use_cache=False).logits
        if not torch.equal(self.model(**everything, use_cache=False).logits, plain):
            raise ModelError(f"{kind} gives other logits for images that are encoded beforehand")
        halves = [TokenSelection(torch.arange(0, number, 2)[None], number) for number in map(len, encoded.layout.units)]
        left = Left.of(encoded, [Choice((unit,), half) for unit, half in enumerate(halves)], [])
        short = shortened_prompt(self, inputs, left.kept, close=False) | left.encoder_outputs(self)
        found = self.model(**short, use_cache=False).logits[0, -1]
        wanted = self._masked(everything, encoded, left.kept).to(found.device)
        if not torch.allclose(found, wanted, rtol=0, atol=TOLERANCE * float(wanted.abs().max())):
            raise ModelError(f"{kind} does not do with fewer visual tokens what it does if the others are masked")

    def _masked(self, inputs: Mapping[str, Any], encoded: Encoded, kept: Tensor) -> Tensor:
        """(vocabulary,) logits of the last token if none but themselves see the visual tokens that are not kept."""
        ids = inputs["input_ids"]
        place = self.placeholders(ids)
        embeds = self.model.get_input_embeddings()(ids)
        embeds[place.to(embeds.device)] = encoded.features.to(embeds)
        seen = torch.ones_like(place)
        seen[place] = kept
        own = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        allowed = own.new_ones(own.shape).tril() & (seen | own)
        mask = torch.zeros(allowed.shape, dtype=embeds.dtype, device=ids.device)
        mask = mask.masked_fill(~allowed, torch.finfo(embeds.dtype).min)[None, None]
        options = {"position_ids": inputs["position_ids"], "use_cache": False}
        logits: Tensor = self.model(inputs_embeds=embeds, attention_mask=mask, **options).logits[0, -1]
        return logits


def _runs(place: Tensor) -> Tensor:
    """(R,) long, lengths of the runs of a (B, L) mask, row after row; none goes on in the next row."""
    begins = place & ~torch.nn.functional.pad(place[:, :-1], (1, 0))
    return torch.bincount(begins.flatten().cumsum(0)[place.flatten()] - 1)


def _joined(tiles: list[Tensor], pixels: list[Tensor], sizes: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Tiles and their pixels, put together to images of so many visual tokens, as far as such a number of tiles has."""
    ends = set(accumulate(sizes))
    starts = [0, *(n for n, end in enumerate(accumulate(map(len, tiles)), 1) if end in ends and n < len(tiles))]
    parts = [slice(start, end) for start, end in zip(starts, [*starts[1:], len(tiles)], strict=True)]
    joined = [torch.cat([x.flatten() for x in pixels[part]]) for part in parts]
    return [torch.cat(tiles[part]) for part in parts], joined


def _picture() -> Image.Image:
    """Of a size that is square and large enough for most towers, and nowhere flat."""
    ramp = np.add.outer(np.arange(SIDE), 2 * np.arange(SIDE))
    return Image.fromarray(np.stack([ramp % 251, ramp % 241, ramp % 239], 2).astype(np.uint8))
