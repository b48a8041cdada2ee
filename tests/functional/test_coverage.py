import torch

from tokenprune.functional.coverage import _stepwise, max_coverage

COVER = torch.tensor([[[3.0, 2.0, 0.0, -9.0], [0.0, 2.0, 2.0, -9.0], [0.0, 0.0, 0.0, -9.0]]])


def test_by_hand():
    # Alone the tokens cover 3, 4, 2 and nothing. After 1, token 0 covers one more; then all are alike.
    assert max_coverage(COVER, 4).tolist() == [[1, 0, 2, 3]]


def test_a_smaller_set_is_the_beginning_of_a_larger_one():
    cover = torch.rand(2, 9, 12, generator=torch.Generator().manual_seed(0))
    whole = max_coverage(cover, 8)
    assert all(torch.equal(max_coverage(cover, k), whole[:, :k]) for k in range(1, 8))


def test_what_is_not_allowed_covers_nothing():
    assert max_coverage(COVER, 2, allowed=torch.tensor([[True, False, True, True]])).tolist() == [[0, 2]]


def test_a_factor_and_a_bonus_weigh_tokens():
    assert max_coverage(COVER, 1, factor=torch.tensor([[2.0, 1.0, 1.0, 1.0]])).tolist() == [[0]]
    assert max_coverage(COVER, 1, bonus=torch.tensor([[0.0, 0.0, 3.0, 0.0]])).tolist() == [[2]]
    nothing = torch.zeros(1, 4)
    assert max_coverage(COVER, 2, factor=nothing).tolist() == [[0, 1]]


def test_on_a_cpu_picks_are_those_of_the_plain_loop():
    """Also where rounding matters: of float32 with many things, and of tokens that are there twice."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 150, 8, generator=generator)
    x[:, 100:] = x[:, :50]
    x /= x.norm(dim=2, keepdim=True)
    cover, ones = x @ x.mT, torch.ones(2, 150)
    free, factor = ones.bool(), torch.rand(2, 150, generator=generator)
    found = max_coverage(cover, 60, factor=factor)
    assert torch.equal(found, _stepwise(cover.double(), 60, free, factor.double(), 0 * ones))
    assert max_coverage(cover, 60).max() < 100  # the first of two that are the same


def test_literal_transcription():
    cover = torch.randn(3, 7, 10, generator=torch.Generator().manual_seed(1)).double()
    for row, order in zip(cover.tolist(), max_coverage(cover, 6).tolist(), strict=True):
        picks = []
        for _ in range(6):
            value = {
                j: sum(max(0.0, *(line[i] for i in [*picks, j])) for line in row) for j in range(10) if j not in picks
            }
            picks.append(max(value, key=lambda j: (round(value[j], 12), -j)))
        assert order == picks
