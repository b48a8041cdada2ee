"""A selection of cache entries for each head, written by a third party: public names alone."""

from dataclasses import dataclass

import torch
from einops import rearrange

import tokenprune as tp
from tokenprune import signals

ATTENTION, TEXT, KEYS = signals.TextAttention("own", "all"), signals.TextMask("all"), signals.HeadKeys("own")


@tp.register_pruner("headwise")
@dataclass(frozen=True, kw_only=True)
class Headwise(tp.Pruner):
    """Cuts each layer's cache to the visual tokens that the question attends to, by its heads' own choice."""

    requires = frozenset({ATTENTION, TEXT, KEYS})

    def stages(self, spec):
        return tuple(map(tp.stages.cache, range(spec.llm.layers)))

    def _select(self, tokens, k):
        heads = tokens.signal(KEYS).shape[1]
        asked = tokens.signal(ATTENTION) * tokens.signal(TEXT)[:, None, :, None]
        scores = rearrange(asked.sum(2), "b (g h) n -> b g h n", g=heads).sum(2).flatten(1)
        best = scores.topk(heads * k, dim=1).indices  # some heads keep more than others
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
        return tp.TokenSelection.from_heads(rearrange(kept, "b (g n) -> b g n", g=heads))
