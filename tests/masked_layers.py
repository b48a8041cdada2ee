"""What pruning inside the LLM must equal, without any of its code: dropped tokens are masked out from their layer on.

Each row goes alone, without padding and without a cache, through a loop over the model's own decoder layers. All tokens
stay in the sequence; from a stage on, no other token sees those that the stage dropped.
"""

import torch


@torch.no_grad()
def masked_layers_logits(model, inputs, stages, positions, answers, row_positions=None, embeds_of=None):
    """Logits of the positions at which each answer token is predicted.

    Args:
        model: the model.
        inputs: as the processor gives them.
        stages: of a trace.
        positions: ``original`` or ``repacked``, one for each stage.
        answers: (B, T) tokens that follow the prompts.
        row_positions: (row, length) to the position ids of the unpruned row, (..., 1, length); dense ones if None.
        embeds_of: (inputs) to (B, L, D), the LLM's input embeddings; LLaVA's if None.

    Returns:
        (B, T, vocabulary).
    """
    embeds = (embeds_of or llava_embeds(model))(inputs)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    result = []
    for row, answer in enumerate(answers):
        real = mask[row]
        visual = inputs["input_ids"][row][real] == model.config.image_token_id
        x = torch.cat([embeds[row][real], model.get_input_embeddings()(answer)])
        visual = torch.cat([visual, torch.zeros(len(answer), dtype=torch.bool)])
        number = (row_positions or dense)(row, len(x))
        drops = [(stage.stage.layer or 0, stage.keep[row]) for stage in stages]
        logits = layer_loop(model, x, visual, number, drops, positions)
        result.append(logits[-1 - len(answer) : -1])
    return torch.stack(result)


def dense(row, length):
    return torch.arange(length)[None]


def llava_embeds(model):
    def embeds(inputs):
        x = model.get_input_embeddings()(inputs["input_ids"])
        features = torch.cat(
            list(model.base_model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output)
        )
        x[inputs["input_ids"] == model.config.image_token_id] = features
        return x

    return embeds


def layer_loop(model, x, visual, number, drops, positions):
    """Logits (L, vocabulary) of one row; ``drops`` are (layer, numbers of the visual tokens that stay)."""
    decoder, alive = model.get_decoder(), torch.ones(len(x), dtype=torch.bool)
    hidden = x[None]
    for index, layer in enumerate(decoder.layers):
        for (at, keep), policy in zip(drops, positions, strict=True):
            if at == index:
                before = alive.clone()
                alive[visual] = torch.isin(torch.arange(int(visual.sum())), torch.tensor(keep))
                if policy == "repacked":
                    number = number - (before & ~alive).long().cumsum(0)
        causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        kind = (getattr(decoder.config, "layer_types", None) or ["sliding_attention"] * len(decoder.layers))[index]
        if kind == "sliding_attention" and getattr(decoder.config, "sliding_window", None):
            causal = causal.triu(1 - decoder.config.sliding_window)
        allowed = causal & (alive | torch.eye(len(x), dtype=torch.bool))
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        of_kind = (kind,) if hasattr(decoder.rotary_emb, "layer_types") else ()
        rotation = decoder.rotary_emb(hidden, number.clamp(min=0), *of_kind)
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=rotation)
    return model.lm_head(decoder.norm(hidden)[0])
