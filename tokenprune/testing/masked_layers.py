"""What pruning inside the LLM must equal, without any of its code: dropped tokens are masked out from their layer on.

Each row goes alone, without padding and without a cache, through a loop over the model's own decoder layers. All tokens
stay in the sequence; from a stage on, no other token sees those that the stage dropped.
"""

from typing import Any

import torch
from torch import Tensor

from tokenprune.testing.families.base import Family, Inputs

LLAVA = Family()


@torch.no_grad()
def masked_layers_logits(
    model: Any, inputs: Inputs, stages: Any, positions: Any, answers: Tensor, family: Family = LLAVA
) -> Tensor:
    """Logits of the positions at which each answer token is predicted.

    Args:
        model: the model.
        inputs: as the processor gives them.
        stages: of a trace.
        positions: ``original`` or ``repacked``, one for each stage.
        answers: (B, T) tokens that follow the prompts.
        family: what its language model does with a prompt.

    Returns:
        (B, T, vocabulary).
    """
    embeds, number_of = family.embeds(model, inputs), family.row_positions(model, inputs)
    fixed = family.fixed(model, inputs)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    added, result = family.added(model, inputs), []
    for row, answer in enumerate(answers):
        real, more = mask[row], len(answer)
        ids = torch.cat([inputs["input_ids"][row][real], answer])
        x = torch.cat([embeds[row][real], model.get_input_embeddings()(answer)])
        visual = family.placeholder(model, ids)
        visual[len(ids) - more :] = False
        drops = [(stage.stage.layer or 0, stage.keep[row] + fixed[row]) for stage in stages]
        logits = layer_loop(
            model,
            x,
            visual,
            number_of(row, len(x)),
            drops,
            positions,
            family.allowed(model, ids, len(ids) - more),
            [torch.nn.functional.pad(each[row][real], (0, 0, 0, more)) for each in added],
            family.closed,
        )
        result.append(logits[-1 - more : -1])
    return torch.stack(result)


def llava_embeds(model: Any) -> Any:
    """Inputs to a LLaVA's input embeddings (B, L, D)."""
    return lambda inputs: LLAVA.embeds(model, inputs)


def layer_loop(
    model: Any,
    x: Tensor,
    visual: Tensor,
    number: Tensor,
    drops: Any,
    positions: Any,
    allowed: Tensor | None = None,
    added: Any = (),
    closed: Any = LLAVA.closed,
) -> Tensor:
    """Logits (L, vocabulary) of one row; ``drops`` are (layer, numbers of the visual tokens that stay)."""
    whole = torch.ones(len(x), len(x), dtype=torch.bool).tril() if allowed is None else allowed
    decoder, alive = model.get_decoder(), torch.ones(len(x), dtype=torch.bool)
    hidden = x[None]
    for index, layer in enumerate(decoder.layers):
        for (at, keep), policy in zip(drops, positions, strict=True):
            if at == index:
                before = alive.clone()
                alive[visual] = torch.isin(torch.arange(int(visual.sum())), torch.tensor(keep))
                if policy == "repacked":
                    number = closed(number, visual, before, alive)
        if index == 0:
            place = alive.long().cumsum(0)  # a window counts what entered the language model
        seen = windowed(decoder, index, whole, place)
        allowed = seen & (alive | torch.eye(len(x), dtype=torch.bool))
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        rotation = rotated(decoder, index, hidden, number.clamp(min=0))
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=rotation)
        if index < len(added):
            hidden = hidden + added[index]
    return logits_of(model, hidden[0])


def windowed(decoder: Any, index: int, allowed: Tensor, place: Tensor) -> Tensor:
    """(L, L) bool, what the tokens of a layer see, ``place`` being their numbers."""
    kinds, window = getattr(decoder.config, "layer_types", None), getattr(decoder.config, "sliding_window", None)
    if window and (kinds is None or kinds[index] == "sliding_attention"):
        near = place[:, None] - place < window
        if getattr(decoder.config, "use_bidirectional_attention", None):
            near |= allowed.mT  # what sees one another does so at any distance
        return allowed & near
    return allowed


def rotated(decoder: Any, index: int, hidden: Tensor, number: Tensor) -> Any:
    """The position embeddings of a layer."""
    kinds = decoder.config.layer_types[index : index + 1] if hasattr(decoder.rotary_emb, "layer_types") else ()
    return decoder.rotary_emb(hidden, number, *kinds)


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """(L, vocabulary)."""
    logits = model.lm_head(model.get_decoder().norm(hidden))
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
