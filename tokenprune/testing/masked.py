"""What pruning must equal, without any of its code: the whole prompt with the dropped visual tokens masked out.

Each row goes alone, without padding and without a cache, from its own input embeddings, with a mask that hides the
dropped tokens from all others.
"""

from typing import Any

import torch
from torch import Tensor

from tokenprune.testing.families.base import Inputs


@torch.no_grad()
def masked_logits(model: Any, inputs: Inputs, keep: Any, positions: Any, answers: Tensor) -> Tensor:
    """Logits of the positions at which each answer token is predicted.

    Args:
        model: the model.
        inputs: as the processor gives them.
        keep: (I, K) indices of what stays in each image, in the order of the images.
        positions: ``original`` or ``repacked``.
        answers: (B, T) tokens that follow the prompts.

    Returns:
        (B, T, vocabulary).
    """
    rows = masked_rows(model, inputs, keep, positions, answers)
    return torch.stack([logits[-1 - answers.shape[1] : -1] for logits, _, _ in rows])


@torch.no_grad()
def masked_rows(model: Any, inputs: Inputs, keep: Any, positions: Any, answers: Tensor) -> list[Any]:
    """For each row: logits of all tokens, which of them were not dropped, and which columns of the inputs are real."""
    visual = list(model.base_model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output)
    kept = [torch.isin(torch.arange(len(v)), k) for v, k in zip(visual, keep, strict=True)]
    rows, mask = [], inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    for ids, real, answer in zip(inputs["input_ids"], mask.bool(), answers, strict=True):
        rows.append((*_row(model, torch.cat([ids[real], answer]), visual, kept, positions), real))
    assert not visual
    return rows


def _row(model: Any, ids: Tensor, visual: list[Tensor], kept: Any, positions: Any) -> tuple[Tensor, Tensor]:
    place = ids == model.config.image_token_id
    embeds, seen = model.get_input_embeddings()(ids), torch.ones(len(ids), dtype=torch.bool)
    if place.any():
        images = int(place.sum()) // len(visual[0])
        embeds[place] = torch.cat([visual.pop(0) for _ in range(images)])
        seen[place] = torch.cat([kept.pop(0) for _ in range(images)])
    number = torch.arange(len(ids))
    if positions == "repacked":
        number = number - (~seen).long().cumsum(0)
    allowed = torch.ones(len(ids), len(ids), dtype=torch.bool).tril() & (seen | torch.eye(len(ids), dtype=torch.bool))
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    hidden = model.get_decoder()(
        inputs_embeds=embeds[None],
        attention_mask=mask[None, None],
        position_ids=number.clamp(min=0)[None],
        use_cache=False,
    ).last_hidden_state[0]
    return model.lm_head(hidden), seen
