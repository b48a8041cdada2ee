"""VisionZip, written by a third party: public names alone. Formulas of https://arxiv.org/abs/2412.04467."""

from dataclasses import dataclass

import torch

import tokenprune as tp
from tokenprune import signals


@tp.register_pruner("outside_visionzip", paper="https://arxiv.org/abs/2412.04467")
@dataclass(frozen=True, kw_only=True)
class VisionZip(tp.Pruner):
    """Keeps CLS and the patches that it attends to, and sums the others up in a few, before the projector."""

    contextual: int = 10
    requires = frozenset({signals.TowerAttention("cls"), signals.TowerKeys()})

    def stages(self, spec):
        return (tp.stages.PROJECTOR,)

    def _select(self, tokens, k):
        x, attention = tokens.features, tokens.signal(signals.TowerAttention("cls"))
        score = attention.sum(1).masked_fill(tokens.special, torch.inf)
        dominant = score.topk(k - self.contextual, dim=1).indices.sort(1).values
        rest = torch.ones_like(score, dtype=torch.bool).scatter(1, dominant, False).nonzero()[:, 1].view(len(x), -1)
        keys = tokens.signal(signals.TowerKeys()).unflatten(2, (attention.shape[1], -1)).mean(2)
        rows = torch.arange(len(x))[:, None]
        metric = torch.nn.functional.normalize(keys[rows, rest], dim=-1)
        target = torch.arange(self.contextual) * max(1, rest.shape[1] // self.contextual)
        other = torch.ones(rest.shape[1], dtype=torch.bool).scatter(0, target, False)
        nearest = (metric[:, other] @ metric[:, target].mT).argmax(2)
        one_hot = torch.nn.functional.one_hot(nearest, self.contextual).to(x).mT
        means = one_hot @ x[rows, rest[:, other]] / one_hot.sum(2, keepdim=True).clamp(min=1)
        made = torch.cat([x[rows, dominant], x[rows, rest[:, target]] + means], 1)
        sequence = torch.cat([dominant, rest[:, target]], 1)
        keep, order = sequence.sort(1)
        return tp.TokenSelection(keep, tokens.num_tokens, merged=made[rows, order], sequence=sequence)
