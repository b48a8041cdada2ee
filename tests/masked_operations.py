"""What operation pruning must equal, without any of its code: all is computed, and what was skipped is not added.

Each row goes alone, without padding and without a cache. A token that gives no keys and values in a layer is masked out
there; what the layer computes for a token that does not receive, or does not pass the MLP, is thrown away.
"""

import torch
from masked_layers import dense, llava_embeds


@torch.no_grad()
def masked_operations_logits(model, inputs, active, groups, answers, row_positions=None, embeds_of=None):
    """Logits of the positions at which each answer token is predicted.

    Args:
        model: the model.
        inputs: as the processor gives them.
        active: (layers, 3, groups) bool: sources, receivers, MLP.
        groups: for each row, the group of each of its visual tokens; -1 for those that leave before the LLM.
        answers: (B, T) tokens that follow the prompts.
        row_positions, embeds_of: see ``masked_layers``.
    """
    embeds = (embeds_of or llava_embeds(model))(inputs)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    result = []
    for row, answer in enumerate(answers):
        ids = inputs["input_ids"][row][mask[row]]
        x = torch.cat([embeds[row][mask[row]], model.get_input_embeddings()(answer)])
        group = torch.full((len(x),), len(active[0, 0]))  # text: a group of its own, for which everything runs
        group[: len(ids)][ids == model.config.image_token_id] = torch.tensor(groups[row], dtype=torch.long)
        there = group >= 0
        number = (row_positions or dense)(row, len(x))[..., there]
        logits = loop(model, x[there], number, active, group[there])
        result.append(logits[-1 - len(answer) : -1])
    return torch.stack(result)


def loop(model, x, number, active, group):
    decoder, hidden = model.get_decoder(), x[None]
    text = torch.ones(*active.shape[:2], 1, dtype=torch.bool)
    active = torch.cat([active, text], 2)
    for layer, (sources, receivers, mlp) in zip(decoder.layers, active[:, :, group], strict=True):
        allowed = torch.ones(len(x), len(x), dtype=torch.bool).tril() & sources
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]
        rotation = decoder.rotary_emb(hidden, number)
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
    return model.lm_head(decoder.norm(hidden)[0])
