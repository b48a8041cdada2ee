import pytest
import torch

from tokenprune.functional.greedy import NEVER, Criterion, lazy_greedy, stepwise_greedy


class Farthest(Criterion):
    """The smallest of whole-numbered distances to the picks: ties everywhere."""

    def __init__(self, distance):
        self.distance = distance  # (B, N, N)

    def among(self, candidates):
        return torch.stack([d[c][:, c] for d, c in zip(self.distance, candidates, strict=True)])

    def lower(self, gain, pick, matrix, past):
        return gain.clip(max=matrix[pick])

    def step(self, gain, pick, at):
        return gain.minimum(self.distance[torch.arange(len(pick)), pick[:, 0]])

    def update(self, gain, picks, counts):
        rows = [d[p].amin(0) for d, p in zip(self.distance, picks, strict=True)]
        return gain.minimum(torch.stack(rows))


def plain(distance, gain, k, floor):
    """The loop over all tokens, one pick at a time; the lowest index wins ties."""
    allowed, picks = [i for i, g in enumerate(gain.tolist()) if g > NEVER], []
    for _ in range(k):
        gain = torch.where(gain > floor, gain, NEVER)
        gain[picks] = NEVER
        left = [i for i in allowed if i not in picks]
        pick = int(gain.argmax()) if gain.max() > NEVER else left[0]
        picks.append(pick)
        gain = gain.minimum(distance[pick])
    return picks


@pytest.mark.parametrize("candidates", [(1, 1), (3, 3), (2, 30), (1000, 1000)])
@pytest.mark.parametrize("floor", [0.0, 4.0])
def test_same_picks_as_the_plain_loop_with_ties_padding_and_exhaustion(monkeypatch, candidates, floor):
    monkeypatch.setattr("tokenprune.functional.greedy.CANDIDATES", candidates)
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(0, 10, (2, 60, 60), generator=generator).float()
    distance = half + half.mT
    gain = torch.randint(5, 20, (2, 60), generator=generator).float()
    gain[0, ::7] = NEVER
    order = lazy_greedy(Farthest(distance), gain, torch.full_like(gain, floor), 45)
    same = stepwise_greedy(Farthest(distance), gain, torch.full_like(gain, floor), 45)
    assert torch.equal(same, order)
    assert order.tolist() == [plain(d, g, 45, floor) for d, g in zip(distance, gain, strict=True)]


def test_only_blocks_of_picks_are_brought_up_to_date():
    updates = []

    class Watched(Farthest):
        def update(self, gain, picks, counts):
            updates.append(counts)
            return super().update(gain, picks, counts)

    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 500, 2, generator=generator)
    gain = torch.full((1, 500), 2.0)
    lazy_greedy(Watched(torch.cdist(points, points)), gain, torch.zeros_like(gain), 100)
    assert len(updates) < 50
