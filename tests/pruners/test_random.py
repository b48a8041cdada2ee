import pytest
import torch

from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.stages import PRE_LLM, decoder

FEATURES = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))


SPEC = ModelSpec(TransformerSpec(4, 8, 16, 2, 2, 4, 3), vocabulary=10, visual_tokens=50)


def keep(features=FEATURES, k=10, seed=0, layer=None, **kwargs):
    return create_pruner("random", seed=seed, layer=layer).select(VisualTokens(features, **kwargs), k).keep


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


def test_layer_is_where_tokens_leave():
    assert create_pruner("random").stages(SPEC) == (PRE_LLM,)
    assert create_pruner("random", layer=2).stages(SPEC) == (decoder(2),)
    assert [step.positions for step in create_pruner("random", layer=2).steps(SPEC)] == ["repacked"]
    with pytest.raises(ConfigError, match="allowed: 1 to 3"):
        create_pruner("random", layer=4).steps(SPEC)


def test_a_draw_at_one_stage_tells_nothing_about_that_at_another():
    """Of 50 tokens 10, and of these 5: each of the 50 is left as often, whatever its place."""
    counts = torch.zeros(50)
    for seed in range(400):
        ids = torch.tensor([seed])
        first = keep(FEATURES[:1], seed=0, row_ids=ids)
        second = keep(FEATURES[:1, :10], k=5, seed=0, layer=2, row_ids=ids)
        counts[first[0][second[0]]] += 1
    assert counts.sum() == 2000
    chi2 = ((counts - 40) ** 2 / (40 * 0.9)).sum()  # 49 degrees of freedom: beyond 95 with probability 1e-4
    assert chi2 < 95


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0"])
def test_bad_seed(seed):
    with pytest.raises(ConfigError, match="seed"):
        create_pruner("random", seed=seed)
