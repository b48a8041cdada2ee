import pytest
import torch
from golden_data import load

from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError
from tokenprune.pruners.holov import shares


def tokens_of(attention, features=None):
    features = torch.zeros(*attention.shape, 2) if features is None else features
    return VisualTokens(features, {"cls_attention": attention[:, None]})


def golden():
    case = load("holov_n576_t128")
    return case, tokens_of(case["attention"], case["image_tokens"])


def literal(attention, k, number):
    """One row, in the order of the prompt."""
    size, longer = divmod(len(attention), number)
    runs, start = [], 0
    for run in range(number):
        runs.append(range(start, start + size + (run < longer)))
        start = runs[-1].stop
    means = [sum(attention[i] for i in run) / len(run) for run in runs]
    counts = [int(k * mean / sum(means)) for mean in means]
    for run in sorted(range(number), key=lambda r: (-means[r], r))[: k - sum(counts)]:
        counts[run] += 1
    ranked = [sorted(run, key=lambda i: (-attention[i], i)) for run in runs]
    kept = {i for run, count in zip(ranked, counts, strict=True) for i in run[:count]}
    others = sorted(set(range(len(attention))) - kept, key=lambda i: (-attention[i], i))
    kept |= set(others[: k - len(kept)])
    return [i for run in ranked for i in run if i in kept]


def test_tokens_and_their_order_are_those_of_the_official_code():
    case, tokens = golden()
    chosen = create_pruner("holov").select(tokens, 128)
    assert torch.equal(chosen.sequence[0], case["qwen_variant_positions_b0"].long())
    assert torch.equal(case["image_tokens"][0, chosen.sequence[0]], case["output_tokens"][0])
    raster = create_pruner("holov", order="raster").select(tokens, 128)
    assert raster.sequence is None
    assert torch.equal(raster.keep, chosen.keep)


def test_shares_are_those_of_the_official_code():
    """Whose scores are those of the attention times 1.09, as similarity is scaled to the same mean."""
    case, _ = golden()
    runs = torch.arange(576).tensor_split(16)
    assert torch.equal(shares(case["attention"], runs, 128), case["allocated"][None].float())
    means = torch.stack([case["attention"][0, run].mean() for run in runs])
    torch.testing.assert_close(1.09 * 1000 * means, case["patch_scores"], atol=0, rtol=1e-3)


@pytest.mark.parametrize("k", [1, 10, 25, 49])
@pytest.mark.parametrize("runs", [1, 4, 7, 50, 99])
def test_literal_transcription(k, runs):
    """Also where runs do not divide, there are more of them than tokens, or they are too small for their share."""
    attention = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)) ** 6
    chosen = create_pruner("holov", runs=runs).select(tokens_of(attention), k)
    assert chosen.sequence.tolist() == [literal(row.double().tolist(), k, min(runs, 50)) for row in attention]


def test_by_hand():
    # Three runs of two whose attention is as 6 : 3 : 1 of 4 tokens: 2.4, 1.2, 0.4; rounding leaves one, which the first
    # cannot take, so the next best token of all others stays.
    attention = torch.tensor([[0.3, 0.9, 0.1, 0.5, 0.05, 0.15]])
    chosen = create_pruner("holov", runs=3).select(tokens_of(attention), 4)
    assert chosen.sequence.tolist() == [[1, 0, 3, 5]]
    assert chosen.keep.tolist() == [[0, 1, 3, 5]]


@pytest.mark.parametrize(
    ("options", "message"), [({"runs": 0}, "runs.*at least 1"), ({"order": "rows"}, "Allowed: attention, raster")]
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        create_pruner("holov", **options)
