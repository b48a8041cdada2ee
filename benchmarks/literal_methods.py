"""How official code chooses visual tokens, written literally: its Python loops, row by row where it takes one picture.

Transcribed from formulas. Each takes the inputs of ``selection_methods.py`` and T, and returns what stays of each row,
in any order; of methods that make tokens also those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

Made = tuple[Tensor, Tensor]  # (B, K) kept tokens, and features that are made of all


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the methods read of rows of visual tokens.

    Attributes:
        features: (B, N, D), hidden states of the vision tower and visual tokens at once.
        keys: (B, 1 + N, D) of the tower, CLS first, and ``query`` (B, D) of CLS.
        attention: (B, H, N) that CLS pays, from query and keys.
        early: (B, H, N) that CLS pays in an early layer.
        received: (B, H, N) that patches pay, and ``early_received`` in the early layer.
        image, text: (B, N, C) and (B, 1, C) embeddings in CLIP's space.
        words: (B, P, D) embeddings of the question.
        grid: (height, width).
    """

    features: Tensor
    keys: Tensor
    query: Tensor
    attention: Tensor
    early: Tensor
    received: Tensor
    early_received: Tensor
    image: Tensor
    text: Tensor
    words: Tensor
    grid: tuple[int, int]


def fastervlm(inputs: Inputs, k: int) -> Tensor:
    """The k tokens with most attention."""
    return inputs.attention.mean(1).topk(k).indices.sort(1).values


def vispruner(inputs: Inputs, k: int) -> Tensor:
    """One picture at a time; cosines of the halves are computed in each round."""
    kept = []
    for features, attention in zip(inputs.features, inputs.attention, strict=True):
        order, important = attention.mean(0).argsort(descending=True), k // 2
        rest, x = order[important:], features / features.norm(dim=-1, keepdim=True)
        while len(rest) > k - important:
            first, second = rest[0::2], rest[1::2]
            alike = (x[first] @ x[second].T).max(1).values
            leave = min(8, len(rest) - (k - important))
            rest = torch.cat([first[alike.argsort(descending=True)[leave:]], second])
        kept.append(torch.cat([order[:important], rest]).sort().values)
    return torch.stack(kept)


def visionzip(inputs: Inputs, k: int) -> Made:
    """All pictures at once; without CLS among the kept tokens."""
    (batch, n, width), contextual = inputs.features.shape, round(k * 5 / 32)
    best = inputs.attention.sum(1).topk(k - contextual).indices
    left = torch.ones(batch, n, dtype=torch.bool).scatter(1, best, False)
    dominant = inputs.features[~left].view(batch, -1, width)
    heads = rearrange(inputs.keys[:, 1:], "b n (h d) -> b h n d", h=inputs.attention.shape[1])
    metric, x = (y[left].view(batch, n - k + contextual, -1) for y in (heads.mean(1), inputs.features))
    metric = metric / metric.norm(dim=-1, keepdim=True)
    step = max(1, metric.shape[1] // contextual)
    targets = torch.arange(0, metric.shape[1], step)[:contextual]
    others = torch.ones(metric.shape[1], dtype=torch.bool).scatter(0, targets, False)
    nearest = (metric[:, others] @ metric[:, targets].mT).argmax(2)
    member = torch.zeros(*nearest.shape, contextual).scatter(2, nearest[:, :, None], 1)
    means = (member.mT @ x[:, others]) / member.sum(1).clamp(min=1)[:, :, None]
    index = torch.arange(n).expand(batch, -1)[left].view(batch, -1)
    return torch.cat([best, index[:, targets]], 1), torch.cat([dominant, x[:, targets] + means], 1)


def hiprune(inputs: Inputs, k: int) -> Tensor:
    """Row by row, as rows have different numbers of neighbours; the maps' means come in two parts, as to ours."""
    (n, width), kept = (inputs.features.shape[1], inputs.grid[1]), []
    pairs = ((inputs.early, inputs.early_received), (inputs.attention, inputs.received))
    objects, deep = ((cls.mean(1) + n * patches.mean(1)) / (n + 1) for cls, patches in pairs)
    for middle, late in zip(objects, deep, strict=True):
        anchors = middle.topk(round(k * 0.1 / 5)).indices
        near = [anchors, anchors - 1, anchors + 1, anchors - width, anchors + width]
        own = torch.cat(near).clamp(0, n - 1).unique()
        late = late.clone()
        late[own] -= 1
        kept.append(torch.cat([own, late.topk(k - len(own)).indices]).sort().values)
    return torch.stack(kept)


def trim(inputs: Inputs, k: int) -> Made:
    """Scores of all pictures at once, then picture by picture: what stays, and the mean of what leaves."""
    score = (-(inputs.image @ inputs.text.mT)[:, :, 0]).softmax(1)
    kept, made = score.topk(k - 1).indices.sort(1).values, []
    for features, index in zip(inputs.features, kept, strict=True):
        leaves = torch.ones(len(features), dtype=torch.bool)
        leaves[index] = False
        made.append(torch.cat([features[index], features[leaves].mean(0, keepdim=True)]))
    return kept, torch.stack(made)


def holov(inputs: Inputs, k: int) -> Tensor:
    """Row by row and run by run, with the variances of similarity that cancel in the end."""
    kept = []
    for features, attention in zip(inputs.features, inputs.attention.mean(1), strict=True):
        weights, runs = [], torch.arange(len(attention)).tensor_split(16)
        for run in runs:
            x = features[run] / features[run].norm(dim=-1, keepdim=True)
            alike = (x @ x.T).fill_diagonal_(0)
            mean = alike.sum(1, keepdim=True) / (len(run) - 1)
            variance = (alike - mean).square().sum(1) / (len(run) - 1)
            seen = 1000 * attention[run]
            weights.append((seen + 0.09 * variance * seen.abs().mean() / (variance.abs().mean() + 1e-6)).mean())
        share = torch.stack(weights) / sum(weights)
        counts = (k * share).floor().long()
        counts[share.argsort(descending=True)[: k - int(counts.sum())]] += 1
        best = [
            run[attention[run].topk(min(int(count), len(run))).indices] for run, count in zip(runs, counts, strict=True)
        ]
        kept.append(torch.cat(best))
    return torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=-1)


def scope(inputs: Inputs, k: int) -> Tensor:
    """All pictures at once; the whole matrix is gone through for each pick."""
    x = inputs.features / inputs.features.norm(dim=-1, keepdim=True)
    alike, weight, lines = x @ x.mT, inputs.attention.sum(1), torch.arange(len(x))
    covered, taken, picks = torch.zeros(x.shape[:2]), torch.zeros(x.shape[:2], dtype=torch.bool), []
    for _ in range(k):
        gain = weight * (alike - covered[:, None]).clamp_(min=0).sum(2)
        pick = gain.masked_fill(taken, -torch.inf).argmax(1)
        covered = torch.maximum(covered, alike[lines, pick])
        taken[lines, pick] = True
        picks.append(pick)
    return torch.stack(picks, 1)


def prunesid(inputs: Inputs, k: int) -> Tensor:
    """With components by random projections, as the official code has them; CLS is not among the tokens."""
    squashed = inputs.features.sigmoid()
    _, _, vectors = torch.pca_lowrank(squashed.mT, q=(k + 1) // 4)  # it takes the mean over the channels off by itself
    return prunesid_within(inputs, k, vectors.abs().argmax(2))


def prunesid_within(inputs: Inputs, k: int, group: Tensor) -> Tensor:
    """What stays given the groups (B, N): suppression and quota, row by row and group by group."""
    kept, total = [], k + 1
    for features, score, own in zip(inputs.features, inputs.attention.sum(1), group, strict=True):
        x = features / features.norm(dim=-1, keepdim=True)
        alike, n = x @ x.T, len(x)
        above = total / 32 * alike.triu(1).sum() / (n * (n - 1) / 2)
        ranked, counts = [], []
        for number in range((k + 1) // 4):
            members = (own == number).nonzero()[:, 0]
            left, among, picks = score[members].clone(), alike[members][:, members], []
            while len(left) and float(left.max()) > 0:
                best = int(left.argmax())
                picks.append(best)
                left[among[best] > above] = 0
                left[best] = 0
            order = score[members].argsort(descending=True).tolist()
            ranked.append(members[picks + [i for i in order if i not in set(picks)]].tolist())
            counts.append(len(picks))
        stay = _quota([len(group) for group in ranked], counts, total)
        kept.append([i for group, count in zip(ranked, stay, strict=True) for i in group[:count]][:k])
    return torch.tensor(kept)


def _quota(sizes: list[int], counts: list[int], total: int) -> list[int]:
    """How many of each group stay."""
    least = [min(1, size) for size in sizes]
    most = [min(5 * math.ceil(total / 64), *pair) for pair in zip(sizes, counts, strict=True)]
    while sum(most) < total:
        most = [min(old + 1, size) for old, size in zip(most, sizes, strict=True)]
    found = torch.tensor(counts).float()
    ends = ((found / found.sum()).cumsum(0) * max(0, total - sum(least) - 1)).round().long().tolist()
    shares = [end - before for end, before in zip(ends, [0, *ends], strict=False)]
    stay = [min(share + low, high) for share, low, high in zip(shares, least, most, strict=True)]
    for group in sorted(range(len(sizes)), key=lambda g: -counts[g]):
        stay[group] += min(most[group] - stay[group], max(0, total - 1 - sum(stay)))
    return stay


def mmtok(inputs: Inputs, k: int) -> Tensor:
    """Picture by picture; the whole matrix is gone through for each pick."""
    kept = []
    for features, words in zip(inputs.features, inputs.words, strict=True):
        x, q = (y / y.norm(dim=-1, keepdim=True).clamp(min=1e-8) for y in (features, words))
        by_words = (q @ x.T / 0.02).softmax(1) / len(q)
        by_patches = (x @ x.T / 0.2).softmax(1) / len(x)
        cover, picks = torch.cat([by_words, 0.5 * by_patches]), []
        best = torch.zeros(len(cover))
        for _ in range(k):
            gain = (cover - best[:, None]).clamp_(min=0).sum(0)
            gain[picks] = -torch.inf
            picks.append(int(gain.argmax()))
            best = torch.maximum(best, cover[:, picks[-1]])
        kept.append(sorted(picks))
    return torch.tensor(kept)


def vscan(inputs: Inputs, k: int) -> Made:
    """Picture by picture. The official code fails where half of T is less than one a window; this goes on."""
    (height, width), kept, made = inputs.grid, [], []
    place = rearrange(torch.arange(height * width), "(y h x w) -> (y x) (h w)", h=6, x=width // 6, w=6)
    rows = zip(inputs.features, inputs.early.mean(1), inputs.attention.mean(1), strict=True)
    for features, early, late in rows:
        local = place.gather(1, early[place].topk(k // 2 // len(place), dim=1).indices).flatten()
        late = late.clone()
        late[local] = 0
        own = torch.cat([local, late.topk(k - len(local)).indices]).sort().values
        leaves = torch.ones(len(features), dtype=torch.bool)
        leaves[own] = False
        x = features / features.norm(dim=-1, keepdim=True).clamp(min=1e-8)
        nearest = (x[leaves] @ x[own].T).argmax(1)
        sums = features[own].index_add(0, nearest, features[leaves])
        count = torch.ones(k).index_add(0, nearest, torch.ones(len(nearest)))
        kept.append(own)
        made.append(sums / count[:, None])
    return torch.stack(kept), torch.stack(made)


def prumerge(inputs: Inputs, k: int) -> Made:
    """A loop over pictures and one over kept tokens; the products are those of one token with all keys."""
    scores = (inputs.query[:, None] @ inputs.keys.mT)[:, 0] / inputs.query.shape[1] ** 0.5
    attention, kept, made = scores.softmax(1)[:, 1:], [], []
    for features, keys, weight in zip(inputs.features, inputs.keys[:, 1:], attention, strict=True):
        picks, x, tokens = weight.topk(k - 1).indices, keys / keys.norm(dim=-1, keepdim=True), []
        for pick in picks:
            alike = x @ x[pick]
            alike[pick] = -torch.inf
            near = alike.topk(32).indices
            tokens.append(features[pick] + (weight[near, None] * features[near]).sum(0))
        leaves = torch.ones(len(features), dtype=torch.bool)
        leaves[picks] = False
        tokens.append((weight[leaves, None] * features[leaves]).sum(0))
        kept.append(picks)
        made.append(torch.stack(tokens))
    return torch.stack(kept), torch.stack(made)
