"""A pruner of videos that gives frames with more news more of the budget."""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

import tokenprune as tp


@tp.register_pruner("news")
@dataclass(frozen=True, kw_only=True)
class News(tp.Pruner):
    """Keeps what is unlike the frame before, and shares a video's budget out over its frames by how much that is."""

    segments: str = "together"

    def _select(self, tokens, k):
        rows = []
        for row in tokens.features.float():
            frames = row.split(tokens.quota(k).sizes)
            before = [frames[0], *frames[:-1]]
            change = [
                1 - normalize(x, dim=-1) @ normalize(y.mean(0), dim=0) for x, y in zip(frames, before, strict=True)
            ]
            counts = tokens.quota(k).shares([float(each.mean()) for each in change])
            picked = [each.topk(count).indices for each, count in zip(change, counts, strict=True)]
            starts = torch.tensor([0, *map(len, frames)]).cumsum(0)
            rows.append(torch.cat([start + own for start, own in zip(starts, picked, strict=False)]).sort().values)
        return tp.TokenSelection.from_rows(rows, tokens.num_tokens)
