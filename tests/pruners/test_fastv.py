import pytest
import torch
from golden_data import load

from tokenprune import Budget, VisualTokens, create_pruner
from tokenprune.core.errors import BudgetError, ConfigError
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.stages import decoder

VICUNA_7B = TransformerSpec(layers=32, width=4096, mlp_width=11008, heads=32, kv_heads=32, head_dim=128, mlp_matrices=3)
SPEC = ModelSpec(VICUNA_7B, vocabulary=32064, visual_tokens=576)
FASTV = create_pruner("fastv")


def keep(attention, k):
    """What is kept of attention (B, H, Q, N)."""
    return FASTV.select(
        VisualTokens(torch.zeros(len(attention), attention.shape[3], 2), {"text_attention": attention}), k
    ).keep


@pytest.mark.parametrize("n", [288, 144, 166, 98, 30])
def test_kept_tokens_are_those_of_the_official_code(n):
    case = load("fastv_hf_select_k2")
    attention = case["attn_last_row"][None, :, None, 35 : 35 + 576]
    assert torch.equal(keep(attention, n)[0] + 35, case[f"kept_image_n{n}"].long())


def test_by_hand():
    first_head = torch.tensor([[[0.9, 0.0, 0.0, 0.0], [0.1, 0.5, 0.1, 0.3]]])  # two queries: the last one counts
    second_head = torch.tensor([[[0.0, 0.9, 0.0, 0.0], [0.2, 0.0, 0.5, 0.3]]])  # means: 0.15, 0.25, 0.3, 0.3
    attention = torch.stack([first_head, second_head], 1)
    assert [keep(attention, k).tolist() for k in (1, 2, 3)] == [[[2]], [[2, 3]], [[1, 2, 3]]]


def test_literal_transcription():
    attention = torch.randn(3, 4, 2, 20, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for row, kept in zip(attention, keep(attention, 7).tolist(), strict=True):
        scores = [sum(float(head[-1, token]) for head in row) / 4 for token in range(20)]
        assert kept == sorted(sorted(range(20), key=lambda token: -scores[token])[:7])


def test_half_precision_attention_is_averaged_in_float32():
    attention = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2**-11, 0.0]], dtype=torch.float16)[None, :, None]
    assert keep(attention, 1).tolist() == [[1]]  # in float16 both sums are 1, and the lower index would win


@pytest.mark.parametrize(
    ("total", "average", "after"), [(576, 192, 167), (576, 128, 99), (576, 64, 30), (2880, 640, 491), (2880, 320, 150)]
)
def test_average_budgets_are_the_published_ones(total, average, after):
    assert FASTV.schedule(SPEC, Budget(average_tokens=average), total) == (after,)
    assert after == -((2 * total - 32 * average) // 30)  # the least with 2 * total + 30 * after >= 32 * average


@pytest.mark.parametrize(("total", "average", "spent"), [(576, 32, 36), (2880, 160, 180)])
def test_impossible_average_budgets_are_refused(total, average, spent):
    with pytest.raises(BudgetError, match=f"layers before the pruning stages spend {spent} of {total}"):
        FASTV.schedule(SPEC, Budget(average_tokens=average), total)


def test_other_budgets_count_what_is_left():
    assert FASTV.schedule(SPEC, Budget(keep_tokens=64), 576) == (64,)
    assert FASTV.schedule(SPEC, Budget(keep_ratio=0.25), 576) == (144,)


def test_layer_is_where_tokens_leave():
    assert FASTV.stages(SPEC) == (decoder(2),)
    assert create_pruner("fastv", layer=5).schedule(SPEC, Budget(average_tokens=128), 576) == (46,)
    assert FASTV.positions == "original"


@pytest.mark.parametrize("layer", [-1, 0, 32])
def test_layers_that_the_model_does_not_have(layer):
    with pytest.raises(ConfigError, match="allowed: 1 to 31"):
        create_pruner("fastv", layer=layer).steps(SPEC)
