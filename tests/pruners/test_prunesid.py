import pytest
import torch
from golden_data import cases, load

import tokenprune as tp
from tokenprune import VisualTokens, create_pruner
from tokenprune.functional.vectors import unit
from tokenprune.pruners import prunesid
from tokenprune.pruners.prunesid.groups import principal_groups
from tokenprune.pruners.prunesid.within import best_of_groups, members, not_suppressed, quotas, threshold
from tokenprune.testing.families.llava import ask, shared_llava

PRUNESID = create_pruner("prunesid")


def parts(case):
    """Patches, their scores, and the budget with CLS."""
    return case["hidden_states"][:, 1:], case["cls_attention"][:, :, 1:].mean(1), case["order"].shape[1] + 1


def tokens_of(case):
    attention = case["cls_attention"].clone()
    attention[:, :, 0] = 0
    return VisualTokens(case["hidden_states"], {"cls_attention": attention}, special=torch.arange(577) == 0)


@pytest.mark.parametrize("name", cases("prunesid_*"))
def test_given_the_code_s_random_groups_all_else_is_the_official_code_s(name):
    case = load(name)
    (x, score, total), group = parts(case), case["group"].long()
    above = threshold(unit(x), total)
    torch.testing.assert_close(above, case["threshold"], atol=1e-6, rtol=0)
    picked = not_suppressed(unit(x), score, group, above)
    number = case["nms_counts"].shape[1]
    counts, sizes = members(group, picked, number), members(group, torch.ones_like(picked), number)
    assert torch.equal(counts, case["nms_counts"].long())
    assert torch.equal(quotas(sizes, counts, total), case["tokens_per_group"].long())
    assert torch.equal(best_of_groups(x, score, group, total), case["order"].long())


@pytest.mark.parametrize("name", cases("prunesid_*"))
def test_the_pruner_does_so_with_cls_before_the_groups(name, monkeypatch):
    case = load(name)
    monkeypatch.setattr(prunesid, "principal_groups", lambda x, number: case["group"].long())
    chosen = PRUNESID.select(tokens_of(case), parts(case)[2])
    assert chosen.sequence[:, 0].tolist() == [0]
    assert torch.equal(chosen.sequence[:, 1:] - 1, case["order"].long())
    assert chosen.merged is None


@pytest.mark.parametrize("name", cases("prunesid_*"))
def test_groups_are_those_of_an_exact_decomposition(name):
    """By a singular value decomposition of the generator's, not of the official code, which is random."""
    case = load(name)
    x, _, total = parts(case)
    found = principal_groups(x, total // 4)
    assert torch.equal(found, case["group_exact_svd"].long())
    agreement = float((found == case["group"]).float().mean())
    assert 0.5 < agreement < 0.9


def test_groups_of_more_tokens_than_channels():
    x = torch.randn(1, 200, 40, generator=torch.Generator().manual_seed(0)).double()
    before, squashed = x.clone(), x[0].sigmoid()
    left = torch.linalg.svd(squashed - squashed.mean(1, keepdim=True), full_matrices=False).U
    assert torch.equal(principal_groups(x, 30)[0], left[:, :30].abs().argmax(1))
    assert torch.equal(x, before)


def test_suppression_by_hand():
    # 0 suppresses 1; 2, which 1 is like, stays, as what is suppressed suppresses none; 3 is of another group.
    similarity = torch.eye(4)
    for i, j in ((0, 1), (1, 2), (0, 3)):
        similarity[i, j] = similarity[j, i] = 0.6
    group, score = torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    x = torch.linalg.cholesky(similarity)[None]
    assert not_suppressed(x, score, group, torch.tensor([0.5])).tolist() == [[True, False, True, True]]


def test_quotas_by_hand():
    sizes = torch.tensor([[10, 10, 4, 0]])
    # One each of three groups, and 8 more by 6 : 3 : 1, at ends of 5, 7 and 8. At most 5, 3, 1, raised to 6, 4, 2.
    assert quotas(sizes, torch.tensor([[6, 3, 1, 0]]), 12).tolist() == [[6, 3, 2, 0]]
    # 12 more by 10 : 1 : 1; at most 5, 1, 1, raised to 8, 4, 4. So three are missing, which the next ones have.
    assert quotas(torch.tensor([[10, 10, 10]]), torch.tensor([[10, 1, 1]]), 16).tolist() == [[8, 4, 3]]
    # What is suppressed comes back where the groups are too small.
    assert int(quotas(sizes, torch.tensor([[1, 1, 1, 0]]), 24).sum()) == 23


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9, 24])
@pytest.mark.parametrize("special", [True, False])
def test_every_budget_is_met(k, special):
    generator = torch.Generator().manual_seed(k)
    x, attention = torch.randn(2, 26, 6, generator=generator), torch.rand(2, 1, 26, generator=generator)
    tokens = VisualTokens(x, {"cls_attention": attention}, special=torch.arange(26) == 0 if special else None)
    chosen = PRUNESID.select(tokens, k)
    assert chosen.keep.shape == (2, k)
    assert special == (chosen.sequence[:, 0] == 0).all()


def test_on_a_model_cls_comes_first():
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1)
    with tp.prune(model, processor, "prunesid", keep_tokens=9, trace_features=True) as trace:
        model(**inputs, logits_to_keep=1)
    tower = model.base_model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
    cls = model.base_model.multi_modal_projector(tower.hidden_states[model.config.vision_feature_layer][:, :1])
    torch.testing.assert_close(trace.last.selection.merged[:, :1], cls, atol=1e-5, rtol=1e-4)
