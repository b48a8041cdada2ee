"""Time a decoder layer's attention and MLP on this machine, for budgets in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.adapters.base import ModelAdapter
from tokenprune.core.errors import ModelError
from tokenprune.costs.latency import time_call
from tokenprune.pruners.dop.latency import AttentionTiming, LatencyModel, MlpTiming

REPEATS = 7
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the visual tokens


@torch.no_grad()
def time_layers(adapter: ModelAdapter, text_tokens: int) -> LatencyModel:
    """Fit a latency model to timings of the layer in the middle, one prompt at a time.

    Args:
        adapter: the model.
        text_tokens: other tokens of a prompt.

    Raises:
        ModelError: if the layer's attention has no separate projections.
    """
    decoder, spec = adapter.model.get_decoder(), adapter.spec
    layer = decoder.layers[spec.llm.layers // 2]
    if missing := [n for n in ("q_proj", "k_proj", "v_proj", "o_proj") if not hasattr(layer.self_attn, n)]:
        name = type(layer.self_attn).__name__
        raise ModelError(f"{name} has no {', '.join(missing)}, so that milliseconds cannot be fitted; use flops")
    weight = layer.self_attn.q_proj.weight
    hidden = torch.randn(1, text_tokens + spec.visual_tokens, weight.shape[1]).to(weight.device, weight.dtype)
    sizes = [text_tokens + round(share * spec.visual_tokens) for share in SHARES]
    works: dict[tuple[int, ...], Callable[[], object]] = {(n,): partial(_mlp, layer, hidden, n) for n in sizes}
    pairs = [(sources, receivers) for sources in sizes for receivers in sizes if receivers <= sources]
    works |= {pair: partial(_attention, layer, spec.llm.head_dim, hidden, *pair) for pair in pairs}
    spent: dict[tuple[int, ...], list[float]] = {key: [] for key in works}
    for turn in range(REPEATS + 1):
        for key, work in works.items():
            _, seconds = time_call(work, weight.device)
            if turn:  # the first one warms up
                spent[key].append(1e3 * seconds)
    times = {key: median(values) for key, values in spent.items()}
    return LatencyModel.fit(
        [AttentionTiming(*key, ms) for key, ms in times.items() if len(key) == 2],
        [MlpTiming(*key, ms) for key, ms in times.items() if len(key) == 1],
    )


def _mlp(layer: Any, hidden: Tensor, tokens: int) -> Tensor:
    output: Tensor = layer.mlp(layer.input_layernorm(hidden[:, :tokens]))
    return output


def _attention(layer: Any, head: int, hidden: Tensor, sources: int, receivers: int) -> Tensor:
    """Norm, projections and kernel for so many tokens; rotation is left out, its share is small."""
    module = layer.self_attn
    normed = layer.input_layernorm(hidden[:, :sources])

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, head)).transpose(1, 2)  # type: ignore[no-untyped-call,no-any-return]

    query = heads(module.q_proj(normed[:, -receivers:]))
    key, value = heads(module.k_proj(normed)), heads(module.v_proj(normed))
    output = functional.scaled_dot_product_attention(query, key, value, is_causal=sources == receivers, enable_gqa=True)
    result: Tensor = module.o_proj(output.transpose(1, 2).flatten(2))
    return result
