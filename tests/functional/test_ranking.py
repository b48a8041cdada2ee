import torch

from tokenprune.functional.ranking import descending, first_largest, highest, leading, rank_within

SCORES = torch.tensor([[1.0, 3.0, 3.0, 0.0, 2.0], [5.0, 5.0, 5.0, 5.0, 5.0]])
ALLOWED = torch.tensor([[True, False, True, True, True], [False, False, True, True, False]])


def test_by_hand():
    assert descending(SCORES).tolist() == [[1, 2, 4, 0, 3], [0, 1, 2, 3, 4]]
    assert descending(SCORES, ALLOWED)[0].tolist() == [2, 4, 0, 3, 1]
    assert highest(SCORES, 2).nonzero()[:, 1].view(2, 2).tolist() == [[1, 2], [0, 1]]
    assert first_largest(SCORES).tolist() == [[1], [0]]


def test_what_is_not_allowed_is_never_among_the_highest():
    assert highest(SCORES, 3, ALLOWED).tolist() == [
        [True, False, True, False, True],
        [False, False, True, True, False],
    ]


def test_ranks_within_groups_by_hand():
    group = torch.tensor([1, 0, 1, 0, 1])
    assert rank_within(SCORES, group).tolist() == [[2, 0, 0, 1, 1], [0, 0, 1, 1, 2]]


def test_the_leading_ones_are_the_first_of_all_in_order():
    generator = torch.Generator().manual_seed(0)
    for scores in (torch.randn(3, 40, generator=generator), torch.randint(9, (3, 40), generator=generator).float()):
        for k in (0, 1, 7, 39, 40):
            assert torch.equal(leading(scores, k), descending(scores)[:, :k])
            mask = torch.zeros(3, 40, dtype=torch.bool).scatter(1, descending(scores)[:, :k], True)
            assert torch.equal(highest(scores, k), mask)
