import pytest
import torch

from tokenprune import VisualTokens, create_pruner
from tokenprune.errors import ConfigError

FEATURES = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))


def keep(features=FEATURES, k=10, seed=0, **kwargs):
    return create_pruner("random", seed=seed).select(VisualTokens(features, **kwargs), k).keep


def test_seeds_and_rows_differ():
    assert not torch.equal(keep(seed=0), keep(seed=1))
    assert not torch.equal(keep()[0], keep()[1])


def test_every_token_of_a_row_counts_for_its_identity():
    changed = FEATURES.clone()
    changed[:, -1] += 1
    assert not torch.equal(keep(), keep(changed))


def test_with_row_ids_the_last_bit_of_the_features_does_not_matter():
    ids = torch.tensor([7, 8, 9])
    nudged = FEATURES * (1 + 1e-7)
    assert not torch.equal(keep(), keep(nudged))
    assert torch.equal(keep(row_ids=ids), keep(nudged, row_ids=ids))
    assert torch.equal(keep(row_ids=ids)[1:2], keep(FEATURES[1:2], row_ids=ids[1:2]))


def test_every_token_is_as_likely():
    counts = torch.zeros(50)
    for seed in range(400):
        counts[keep(FEATURES[:1], seed=seed)[0]] += 1
    assert counts.sum() == 4000
    chi2 = ((counts - 80) ** 2 / (80 * 0.8)).sum()  # 49 degrees of freedom: beyond 95 with probability 1e-4
    assert chi2 < 95


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0"])
def test_bad_seed(seed):
    with pytest.raises(ConfigError, match="seed"):
        create_pruner("random", seed=seed)
