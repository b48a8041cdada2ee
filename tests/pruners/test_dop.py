"""DOP: the unit tests that its specification asks for, and what its options mean."""

import pytest
import torch
from tiny import Project, ask, shared_llava

import tokenprune as tp
from tokenprune import Budget, create_pruner
from tokenprune.errors import ConfigError
from tokenprune.metrics.flops import llm_prefill_flops
from tokenprune.types import ModelSpec, Operation, TransformerSpec

LLM = TransformerSpec(layers=4, width=64, mlp_width=128, heads=4, kv_heads=2, head_dim=16, mlp_matrices=3)
SPEC = ModelSpec(llm=LLM, vocabulary=99, visual_tokens=25)
VICUNA = TransformerSpec(layers=32, width=4096, mlp_width=11008, heads=32, kv_heads=32, head_dim=128, mlp_matrices=3)
LLAVA_7B = ModelSpec(llm=VICUNA, vocabulary=32064, visual_tokens=576)
DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}


def dop(**options):
    return create_pruner("dop", base=Project(positions="original"), **options)


def depths(pruner, spec=SPEC):
    """Layers of sources, receivers and MLP."""
    return (pruner.operations(spec).active[:, :, 0]).sum(0).tolist()


def logits(pruner, rows=(1, 2), keep=11, steps=4, **how):
    model, processor = shared_llava("sdpa")
    with tp.prune(model, processor, pruner, keep_tokens=keep):
        out = model.generate(**ask(processor, *rows), max_new_tokens=steps, **DETAILS, **how)
    return torch.stack(out.logits, 1), out.sequences


def divergence(p, q):
    return (p.log_softmax(-1).exp() * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).max().item()


def test_without_depths_it_is_the_base():
    assert dop().operations(SPEC) is None
    assert torch.equal(logits(dop())[0], logits(Project(positions="original"))[0])


def test_full_depths_are_the_base_and_dead_work_changes_nothing():
    base = logits(Project(positions="original"))[0]
    assert divergence(base, logits(dop(attention_depth=4, mlp_depth=4))[0]) < 1e-6
    assert divergence(base, logits(dop(attention_depth=4, mlp_depth=3))[0]) < 1e-6
    assert divergence(base, logits(dop(attention_depth=4, mlp_depth=2))[0]) > 1e-3


@pytest.mark.parametrize("attention", [1, 2, 3])
def test_the_mlp_is_dead_from_the_last_attention_on(attention):
    outputs = [logits(dop(attention_depth=attention, mlp_depth=mlp))[0] for mlp in range(attention - 1, 5)]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    assert depths(dop(attention_depth=attention, mlp_depth=4)) == [attention, attention - 1, attention - 1]


def test_cached_decoding_is_the_longer_prompt_anew():
    pruner = dop(attention_depth=3, mlp_depth=1)
    cached, tokens = logits(pruner, steps=6)
    again, others = logits(pruner, steps=6, use_cache=False)
    assert torch.equal(tokens, others)
    torch.testing.assert_close(cached, again, atol=1e-4, rtol=0)


def test_published_flops():
    """GSOP's count for LLaVA-1.5-7B: 35 system tokens, 576 visual ones and 100 of text cost 9.474 TFLOPs."""
    full = create_pruner("dop", base={"name": "random"}, attention_depth=32, mlp_depth=32)
    assert depths(full, LLAVA_7B) == [32, 31, 31]
    unpruned = create_pruner("random").plan(LLAVA_7B, [576], 576)
    assert llm_prefill_flops(LLAVA_7B, unpruned, 135) == pytest.approx(9.474e12, rel=1e-4)
    dead = llm_prefill_flops(LLAVA_7B, unpruned, 135) - llm_prefill_flops(
        LLAVA_7B, full.plan(LLAVA_7B, [576], 576), 135
    )
    width, rows = 4096, 576
    mlp, projections, attention = (
        2 * rows * 3 * width * 11008,
        2 * rows * 2 * width**2,
        2 * rows * 2 * width * (576 + 135),
    )
    assert dead == mlp + projections + attention


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"attention_depth": 3}, [3, 2, 2]),
        ({"mlp_depth": 2}, [4, 3, 2]),
        ({"attention_depth": 4, "query_depth": 2, "mlp_depth": 1}, [4, 2, 1]),
        ({"attention_depth": 2, "mlp_depth": 4, "attention": "update_only"}, [4, 2, 3]),
    ],
)
def test_options(options, expected):
    assert depths(dop(**options)) == expected


def test_groups_by_the_ranking_of_the_base():
    pruner = dop(attention_depth=(4, 2), mlp_depth=1, shares=(0.25, 0.75))
    operations = pruner.operations(SPEC)
    assert operations.sizes(16) == [4, 12]
    assert operations.active[:, Operation.ATTENTION_SOURCE].sum(0).tolist() == [4, 2]
    plan = pruner.plan(SPEC, [16], 25)
    assert [plan.tokens(layer, Operation.ATTENTION_SOURCE) for layer in range(4)] == [16, 16, 4, 4]
    assert plan.group_sizes == (4, 12, 9)


def test_average_tokens_count_what_the_layers_hold():
    pruner = dop(attention_depth=2, mlp_depth=1)
    assert pruner.schedule(SPEC, Budget(average_tokens=10), 25) == (20,)
    assert pruner.plan(SPEC, [20], 25).mean_tokens == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_depth": 0}, "attention_depth' is 0; allowed: 1 or more"),
        ({"mlp_depth": -1}, "mlp_depth' is -1"),
        ({"attention": "none"}, "attention is 'none'; Allowed: remove, update_only"),
        ({"shares": (0.5, 0.4)}, "add up to 1"),
        ({"attention_depth": (1, 2)}, "one for all shares or each"),
        ({"attention": "update_only", "query_depth": 1, "attention_depth": 2}, "query has no meaning"),
        ({"base": {"name": "cdprunr"}}, "did you mean 'cdpruner'"),
        ({"base": {"name": "fastv", "layr": 2}}, "did you mean 'layer'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(tp.TokenPruneError, match=message):
        create_pruner("dop", **options).steps(SPEC)


def test_depths_beyond_the_model():
    with pytest.raises(ConfigError, match="5 layers deep, but the LLM has 4"):
        dop(attention_depth=5).steps(SPEC)


def test_a_base_that_reads_pruned_attention_is_refused():
    base = {"name": "fastv", "layer": 2}
    assert len(create_pruner("dop", base=base, attention_depth=3, mlp_depth=1).steps(SPEC)) == 1
    with pytest.raises(ConfigError, match="FastV reads the attention of layer 1, which is pruned"):
        create_pruner("dop", base=base, attention_depth=2).steps(SPEC)
    with pytest.raises(ConfigError, match="before the LLM alone"):
        create_pruner("dop", base=base, shares=(0.5, 0.5)).steps(SPEC)
