"""KL of logits, against torch's own and by hand."""

import math

import pytest
import torch
from torch.nn import functional

from tokenprune.functional.divergence import kl

EVERY = torch.ones(3, 4, dtype=torch.bool)


def logits(seed, scale=2.0):
    return scale * torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reverse", [False, True])
def test_against_torch(reverse):
    p, q = logits(0), logits(1)
    first, second = (q, p) if reverse else (p, q)
    each = functional.kl_div(second.log_softmax(-1), first.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl(p, q, EVERY, reverse=reverse), each.mean(1))


def test_by_hand():
    """A fair coin from one of 3 : 1, in nats, and back."""
    fair, bent = torch.zeros(1, 1, 2), torch.tensor([[[math.log(3), 0.0]]])
    one = torch.ones(1, 1, dtype=torch.bool)
    assert kl(fair, bent, one).item() == pytest.approx(0.5 * math.log(4 / 3))
    assert kl(fair, bent, one, reverse=True).item() == pytest.approx(0.75 * math.log(3) - math.log(2))


def test_equal_distributions():
    p = logits(2)
    assert kl(p, p, EVERY).tolist() == [0, 0, 0]
    assert kl(p, p + 5, EVERY).abs().max() < 1e-6  # logits are known up to a constant


def test_only_counted_positions_count():
    p, q = logits(0), logits(1)
    counts = torch.tensor([[True, True, False, False], [True, True, True, True], [False, False, True, False]])
    expected = [
        kl(p[row : row + 1, on], q[row : row + 1, on], EVERY[:1, : int(on.sum())]) for row, on in enumerate(counts)
    ]
    torch.testing.assert_close(kl(p, q, counts), torch.cat(expected))


def test_half_precision_is_computed_in_single():
    p, q = logits(0).to(torch.bfloat16), logits(1).to(torch.bfloat16)
    assert kl(p, q, EVERY).dtype == torch.float32
    assert torch.equal(kl(p, q, EVERY), kl(p.float(), q.float(), EVERY))


def test_double_precision_stays():
    assert kl(logits(0).double(), logits(1).double(), EVERY).dtype == torch.float64
