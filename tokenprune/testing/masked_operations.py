"""What operation pruning must equal, without any of its code: all is computed, and what was skipped is not added.

Each row goes alone, without padding and without a cache. A token that gives no keys and values in a layer is masked out
there; what the layer computes for a token that does not receive, or does not pass the MLP, is thrown away.
"""

from typing import Any

import torch
from torch import Tensor

from tokenprune.testing.families.base import Family, Inputs
from tokenprune.testing.masked_layers import LLAVA, logits_of, rotated, windowed


@torch.no_grad()
def masked_operations_logits(
    model: Any, inputs: Inputs, active: Tensor, groups: list[list[int]], answers: Tensor, family: Family = LLAVA
) -> Tensor:
    """Logits of the positions at which each answer token is predicted.

    Args:
        model: the model.
        inputs: as the processor gives them.
        active: (layers, 3, groups) bool: sources, receivers, MLP.
        groups: for each row, the group of each of its visual tokens; -1 for those that leave before the LLM.
        answers: (B, T) tokens that follow the prompts.
        family: what its language model does with a prompt.
    """
    embeds, number_of = family.embeds(model, inputs), family.row_positions(model, inputs)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    added, result = family.added(model, inputs), []
    for row, answer in enumerate(answers):
        real, more = mask[row], len(answer)
        prompt = inputs["input_ids"][row][real]
        x = torch.cat([embeds[row][real], model.get_input_embeddings()(answer)])
        group = torch.full((len(x),), len(active[0, 0]))  # text: a group of its own, for which everything runs
        group[: len(prompt)][family.placeholder(model, prompt)] = torch.tensor(groups[row], dtype=torch.long)
        there = group >= 0
        number = number_of(row, len(x))[..., there]
        allowed = family.allowed(model, torch.cat([prompt, answer]), len(prompt))[there][:, there]
        extra = [torch.nn.functional.pad(each[row][real], (0, 0, 0, more))[there] for each in added]
        logits = loop(model, x[there], number, active, group[there], allowed, extra)
        result.append(logits[-1 - more : -1])
    return torch.stack(result)


def loop(
    model: Any, x: Tensor, number: Tensor, active: Tensor, group: Tensor, allowed: Tensor, added: Any = ()
) -> Tensor:
    """Logits (L, vocabulary) of one row, whose tokens all are there from the first layer to the last."""
    decoder, hidden = model.get_decoder(), x[None]
    text = torch.ones(*active.shape[:2], 1, dtype=torch.bool)
    active = torch.cat([active, text], 2)
    for index, (layer, (sources, receivers, mlp)) in enumerate(zip(decoder.layers, active[:, :, group], strict=True)):
        seen = windowed(decoder, index, allowed, torch.arange(len(x))) & sources
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
        rotation = rotated(decoder, index, hidden, number)
        normed = layer.input_layernorm(hidden)
        attended = layer.self_attn(normed, attention_mask=mask, position_embeddings=rotation)[0]
        if hasattr(layer, "pre_feedforward_layernorm"):
            attended = layer.post_attention_layernorm(attended)
        hidden = hidden + attended * receivers[:, None]
        if hasattr(layer, "pre_feedforward_layernorm"):
            passed = layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(hidden)))
        else:
            passed = layer.mlp(layer.post_attention_layernorm(hidden))
        hidden = hidden + passed * mlp[:, None]
        if index < len(added):
            hidden = hidden + added[index]
    return logits_of(model, hidden[0])
