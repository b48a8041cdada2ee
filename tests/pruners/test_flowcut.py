import pytest
import torch
from golden_data import load
from golden_towers import golden_tower, pruned_by

import tokenprune as tp
from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError, ModelError
from tokenprune.core.signals import TowerAttention, TowerHeadMean, TowerValueAttention
from tokenprune.core.stages import tower
from tokenprune.engine.loading import session_for
from tokenprune.pruners.flowcut.score import cuts, leaving, score, signals
from tokenprune.pruners.flowcut.stage import handed_on
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.pruner_on_models import TINY

FLOWCUT = create_pruner("flowcut")
ENTROPY = create_pruner("flowcut", cut="entropy")
GOLDEN_FN = "flowcut_fn_n576"


def of_layers(case):
    """Tokens of which layer 1 has the attention of layer 0 reversed."""
    given = {}
    for layer, attention in enumerate((case["cls_attention"], case["cls_attention"].flip(2))):
        found = (attention, case["semantic_attention"][:, None], case["value_mean"])
        given |= {str(signal): value for signal, value in zip(signals(layer), found, strict=True)}
    return VisualTokens(torch.zeros(1, 576, 2), given)


def test_scores_and_cuts_are_those_of_the_official_code():
    case = load(GOLDEN_FN)
    tokens = of_layers(case)
    for layer, name in enumerate(("score", "score2")):
        torch.testing.assert_close(score(tokens, layer), case[name], atol=1e-7, rtol=1e-5)
    attention = case["cls_attention"].mean(1)
    found = [int(leaving(attention, 64, later)) for later in (20, 12, 6, 2)]
    assert found == case["pruned"].tolist()


def test_a_stage_joins_the_scores_of_its_layers_and_those_handed_on():
    case = load(GOLDEN_FN)
    tokens = of_layers(case)
    *_, stage, last = ENTROPY.steps(TINY)
    assert [step.selector.layers for step in (stage, last)] == [(0,), (1, 2)]
    chosen = create_stage(layers=(0, 1), later=20, by_entropy=True).select(tokens, 64)
    assert torch.equal(chosen.keep, case["kept"].long())
    total = (case["score"] + case["score2"]) / 2
    again = VisualTokens(torch.zeros(1, 542, 2), labels=chosen.labels)
    torch.testing.assert_close(handed_on(again), total.gather(1, chosen.keep), atol=1e-7, rtol=1e-5)
    # Handed on, they count for a half of the next ones, which are in the reverse order.
    signed = {str(signal): tokens.signals[signal] for signal in signals(0)}
    before = torch.zeros(1, 576).index_fill(1, torch.tensor([7, 11]), 1000.0)
    handed = VisualTokens(tokens.features, signed, labels=before.view(torch.int32).long(), history=(600,))
    following = create_stage(layers=(0,), later=0, by_entropy=True).select(handed, 2)
    assert following.keep.tolist() == [[7, 11]]
    said = VisualTokens(torch.zeros(1, 2, 2), labels=following.labels)
    wanted = (1000 + case["score"][0, [7, 11]]) / 2
    torch.testing.assert_close(handed_on(said)[0], wanted)


def create_stage(**options):
    return type(FLOWCUT.steps(TINY)[0].selector)(**options)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_tower_gives_what_it_gives_with_the_official_code(attention):
    case, session, inputs = golden_tower("flowcut_e2e_12l_t32", attention)
    pruned, features = pruned_by(session, inputs, ENTROPY, 32)
    stages = [stage for stage, _ in pruned.early]
    assert stages == [tower(layer) for layer in (2, 4, 6, 8, 10)]
    left = [int(kept.sum()) + 1 for _, kept in pruned.early]
    assert left == case["tokens_after_layer"][[1, 3, 5, 7, 9]].tolist()
    assert pruned.early[-1][1].nonzero()[:, 0].tolist() == case["kept"][0].tolist()
    wanted = case["output"][:, 1:]
    torch.testing.assert_close(features, wanted, atol=2e-4 * float(wanted.abs().max()), rtol=0)


@torch.no_grad()
def test_a_fixed_cut_meets_its_counts():
    _, session, inputs = golden_tower("flowcut_e2e_12l_t32")
    pruned, _ = pruned_by(session, inputs, FLOWCUT, 32)
    counts = FLOWCUT.counts(session.adapter.spec, 32, 144)
    # (n - 32) / sqrt(8, 6, 4, 2) / 2 leave: 20, 19, 18, 20 and the rest.
    assert counts == (124, 105, 87, 68, 32)
    assert tuple(int(kept.sum()) for _, kept in pruned.early) == counts


def test_stages_are_behind_every_second_layer():
    assert list(cuts(23)) == [(layer, 21 - layer) for layer in range(1, 22, 2)]  # of LLaVA-1.5
    assert list(cuts(4)) == [(0, 2), (2, 0)]
    assert list(cuts(2)) == [(0, 0)]
    assert [step.stage for step in FLOWCUT.steps(TINY)] == [tower(1), tower(3)]
    assert FLOWCUT.counts(TINY, 25, 25) == (25, 25)
    assert ENTROPY.counts(TINY, 8, 25) == (8, 8)
    assert ENTROPY.alive(TINY, (8, 8), 25) == (25, 8)
    with pytest.raises(ConfigError, match="second layer or a later one"):
        list(cuts(1))


def test_uneven_attention_lets_more_go():
    even, uneven = torch.full((1, 100), 0.01), torch.zeros(1, 100).index_fill(1, torch.tensor([3]), 1.0)
    assert leaving(torch.cat([even, uneven]), 10, 4).tolist() == [0, 45]


def test_by_hand():
    given = {
        "cls_attention": torch.tensor([[[0.1, 0.2, 0.1, 0.4]]]),  # of a sum of 0.8
        "cls_value_attention": torch.tensor([[[0.3, 0.1, 0.1, 0.1]]]),
        "mean_values": torch.tensor([[[1.0, -1], [3, 0], [-5, 1], [0, 1]]]),
    }
    tokens = VisualTokens(torch.zeros(1, 4, 2), given)
    wanted = [(1 / 8 + 1 / 2) * 2, (1 / 4 + 1 / 6) * 3, (1 / 8 + 1 / 6) * 6, (1 / 2 + 1 / 6) * 1]
    torch.testing.assert_close(score(tokens, None)[0], torch.tensor(wanted))
    assert FLOWCUT.select(tokens, 1).keep.tolist() == [[2]]


@torch.no_grad()
def test_values_are_those_of_the_layer():
    """By hand, of the last layer that is read: values in place of queries and keys, without a scale, CLS included."""

    class Seen(tp.Pruner):
        requires = frozenset({TowerHeadMean("values"), TowerValueAttention(), TowerAttention("cls")})
        found: tuple = ()

        def _select(self, tokens, k):
            object.__setattr__(
                self, "found", (tokens.signal(TowerHeadMean("values")), tokens.signal(TowerValueAttention()))
            )
            return tp.TokenSelection(torch.arange(k).repeat(tokens.batch_size, 1), tokens.num_tokens)

    model, processor = shared_llava("sdpa")
    pruner, given, block = Seen(), [], model.base_model.vision_tower.encoder.layers[2]
    hook = block.self_attn.v_proj.register_forward_hook(lambda *args: given.append(args[2]))
    session_for(model, processor).prune_inputs(ask(processor, 1), pruner, tp.Budget(keep_tokens=5))
    hook.remove()
    values = given[0].unflatten(2, (4, -1)).transpose(1, 2)  # (1, heads, 26, d)
    means, attention = pruner.found
    torch.testing.assert_close(means, values.mean(1)[:, 1:])
    wanted = (values[:, :, :1] @ values.mT).softmax(-1)[:, :, 0, 1:]
    torch.testing.assert_close(attention, wanted, atol=1e-6, rtol=1e-4)


def test_pictures_that_would_keep_unequal_numbers_are_refused():
    _, session, _ = golden_tower("flowcut_e2e_12l_t32")
    entering = load("flowcut_e2e_12l_t32")["inputs_embeds"]
    model = session.adapter.model
    two = torch.cat([entering, entering * 0.1 + entering.flip(1)])
    model.base_model.vision_tower.pre_layrnorm.register_forward_hook(lambda *_: two)
    with pytest.raises(ModelError, match="all pictures of a batch must keep equal numbers"):
        pruned_by(session, ask(session.adapter.processor, 2), ENTROPY, 32)


@pytest.mark.parametrize(
    ("options", "message"), [({"cut": "even"}, "Allowed: entropy, fixed"), ({"share": 0.0}, r"share.*\(0, 1\]")]
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        create_pruner("flowcut", **options)
