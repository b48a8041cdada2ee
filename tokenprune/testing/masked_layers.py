"""What pruning inside the LLM must equal, without any of its code: dropped tokens are masked out from their layer on.

Where a cache is cut, they are masked out for the answer alone; those that left inside the vision tower, in its layers,
too.

Each row goes alone, without padding and without a cache, through a loop over the model's own decoder layers. All tokens
stay in the sequence; from a stage on, no other token sees those that the stage dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.testing.families.base import Family, Inputs
from tokenprune.testing.masked_tower import hidden_patches

LLAVA = Family()


@dataclass(frozen=True, eq=False)
class SeenKeys:
    """What the queries of a row see of its visual tokens beyond what all layers let them see.

    Attributes:
        cuts: by layer, (N,) or (G, N) bool, which visual tokens the last tokens see there, and through which heads.
        more: how many last tokens these are.
        biases: by the first layer that has it, (N,), what is added to the attention logits of the visual tokens.
    """

    cuts: Mapping[int, Tensor] = field(default_factory=dict)
    more: int = 0
    biases: Mapping[int, Tensor] = field(default_factory=dict)

    def mask(self, decoder: Any, index: int, allowed: Tensor, visual: Tensor) -> Tensor:
        """The additive mask (1 or H, L, L) of a layer, of what all heads would see, (L, L) bool."""
        bias, seen = torch.zeros(len(visual)), allowed[None]
        for first, added in sorted(self.biases.items()):
            bias[visual] = added if first <= index else bias[visual]
        if index in self.cuts and self.more:
            kept = self.cuts[index].view(-1, int(visual.sum()))
            heads = kept.repeat_interleave(decoder.config.num_attention_heads // len(kept), 0)
            hidden = torch.zeros(len(heads), len(visual), dtype=torch.bool)
            hidden[:, visual] = ~heads
            seen = allowed.repeat(len(heads), 1, 1)
            seen[:, -self.more :] &= ~hidden[:, None]
        return bias.expand(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


@torch.no_grad()
def masked_layers_logits(
    model: Any,
    inputs: Inputs,
    stages: Any,
    positions: Any,
    answers: Tensor,
    family: Family = LLAVA,
    heads: Any = None,
    biases: Any = None,
) -> Tensor:
    """Logits of the positions at which each answer token is predicted.

    Args:
        model: the model.
        inputs: as the processor gives them.
        stages: of a trace.
        positions: ``original`` or ``repacked``, one for each stage.
        answers: (B, T) tokens that follow the prompts.
        family: what its language model does with a prompt.
        heads: by layer, (B, G, N) bool, which visual tokens each key-value head of its cache keeps; None if all heads
            keep what the stages say.
        biases: by the first layer that has it, for each row (N,), what is added to the attention logits of its visual
            tokens as keys; None if nothing is.

    Returns:
        (B, T, vocabulary).
    """
    with hidden_patches(model, stages, family.placeholder(model, inputs["input_ids"]).sum(1).tolist()):
        embeds = family.embeds(model, inputs)
    number_of, fixed = family.row_positions(model, inputs), family.fixed(model, inputs)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    added, result = family.added(model, inputs), []
    for row, answer in enumerate(answers):
        real, more = mask[row], len(answer)
        ids = torch.cat([inputs["input_ids"][row][real], answer])
        x = torch.cat([embeds[row][real], model.get_input_embeddings()(answer)])
        visual = family.placeholder(model, ids)
        visual[len(ids) - more :] = False
        leaving = [stage for stage in stages if stage.stage.place != "cache"]
        drops = [(stage.stage.first_without, stage.keep[row] + fixed[row]) for stage in leaving]
        cuts = cuts_of(stages, row, fixed[row], int(visual.sum()))
        cuts |= {layer: kept[row] for layer, kept in (heads or {}).items()}
        policies = [policy for policy, stage in zip(positions, stages, strict=True) if stage.stage.place != "cache"]
        logits = layer_loop(
            model,
            x,
            visual,
            number_of(row, len(x)),
            drops,
            policies,
            family.allowed(model, ids, len(ids) - more),
            [torch.nn.functional.pad(each[row][real], (0, 0, 0, more)) for each in added],
            family.closed,
            SeenKeys(cuts, more, {layer: each[row] for layer, each in (biases or {}).items()}),
        )
        result.append(logits[-1 - more : -1])
    return torch.stack(result)


def cuts_of(stages: Any, row: int, fixed: list[int], visual: int) -> dict[int, Tensor]:
    """By layer, (N,) bool: the visual tokens of a row that its cache still holds, where stages cut it."""
    cuts: dict[int, Tensor] = {}
    for stage in stages:
        kept, where = torch.isin(torch.arange(visual), torch.tensor(stage.keep[row] + fixed)), stage.stage
        layers = [where.layer] if where.place == "cache" else range(where.first_without if where.earlier_caches else 0)
        cuts |= {layer: kept & cuts.get(layer, kept) for layer in layers}
    return cuts


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
    seen_keys: SeenKeys | None = None,
) -> Tensor:
    """Logits (L, vocabulary) of one row; ``drops`` are (layer, numbers of the visual tokens that stay)."""
    keys = seen_keys or SeenKeys()
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
        mask = keys.mask(decoder, index, allowed, visual)
        rotation = rotated(decoder, index, hidden, number.clamp(min=0))
        hidden = layer(hidden, attention_mask=mask[None], position_embeddings=rotation)
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
