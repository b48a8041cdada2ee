"""DOP: the unit tests that its specification asks for, and what its options mean."""

import dataclasses
import json

import pytest
import torch

import tokenprune as tp
from tokenprune import Budget, create_pruner
from tokenprune.core.errors import BudgetError, ConfigError, DataError
from tokenprune.core.plan import Operation
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.costs.flops import llm_prefill_flops
from tokenprune.pruners.dop import DOP, policy_file
from tokenprune.pruners.dop.curves import Curves
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.dop.policy import Limit, Objective, Origin, Policy
from tokenprune.pruners.dop.solve import Candidate
from tokenprune.sweeps.build import build
from tokenprune.sweeps.config import parse_config
from tokenprune.sweeps.store import run_id
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.pruners import Project

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


def test_keep_tokens_is_a_budget():
    pruner = dop(attention_depth=3, keep_tokens=7)
    assert pruner.budget == Budget(keep_tokens=7)
    assert dop().budget is None
    model, processor = shared_llava("sdpa")
    with tp.prune(model, processor, pruner) as trace:  # no budget is given
        model.generate(**ask(processor, 1, 2), max_new_tokens=1)
    assert {len(row) for row in trace.last.selection.keep.tolist()} == {7}
    own, given = logits(pruner, keep=None)[0], logits(dop(attention_depth=3), keep=7)[0]
    assert torch.equal(own, given)


def test_keep_tokens_comes_before_the_base_s_own_budget():
    base = {"name": "random", "keep_tokens": 9}
    assert create_pruner("dop", base=base).budget == Budget(keep_tokens=9)
    assert create_pruner("dop", base=base, keep_tokens=3).budget == Budget(keep_tokens=3)


def test_keep_tokens_that_cannot_be():
    with pytest.raises(BudgetError, match="pruner 'dop': keep_tokens must be an integer of at least 1, got 0"):
        dop(keep_tokens=0)
    pruner = dop(keep_tokens=26)
    with pytest.raises(BudgetError, match="keep_tokens=26 exceeds the 25"):
        pruner.schedule(SPEC, pruner.budget, 25)


BASE = {"name": "random", "positions": "original", "seed": 4, "layer": None}


def save_policy(path, depths, base=BASE):
    """A file as a fit on the embedded model would write it."""
    update_only = depths.update_only
    points = {"attention": {2: 0.5}, "mlp": {1: 0.4}, "tokens": {5: 0.7}}
    policy = Policy(
        origin=Origin(model="embedded", weights="a", data="b", code="c"),
        base=base,
        objective=Objective(samples=9, attention="update_only" if update_only else "remove"),
        curves=Curves.of(6, 144, **points, update_only=update_only),
        budget=Limit(kind="average_tokens", value=40.0),
        chosen=Candidate(depths, 0.1, 39.0, 0.2),
    )
    policy_file.save(policy, path)
    return str(path)


@pytest.mark.parametrize(
    ("depths", "expected", "reads"),
    [
        (Depths(attention=4, mlp=1, query=2, keep=9), [4, 2, 1], "remove"),
        (Depths(attention=3, mlp=2, query=2, keep=9), [3, 2, 2], "remove"),
        (Depths(attention=2, mlp=3, keep=9, update_only=True), [6, 2, 3], "update_only"),
    ],
    ids=["three depths", "two depths", "update_only"],
)
def test_a_policy_says_everything(tmp_path, depths, expected, reads):
    pruner = create_pruner("dop", policy=save_policy(tmp_path / "p.yaml", depths))
    spec = dataclasses.replace(SPEC, llm=dataclasses.replace(LLM, layers=6), visual_tokens=144)
    assert [int(n) for n in pruner.operations(spec).active[:, :, 0].sum(0)] == expected
    assert pruner.attention == reads
    assert pruner.budget == Budget(keep_tokens=9)
    assert pruner.member[0] == create_pruner("random", seed=4, positions="original")
    by_hand = DOP.of(BASE, depths)
    assert torch.equal(pruner.operations(spec).active, by_hand.operations(spec).active)
    assert dataclasses.replace(pruner, policy=None) == by_hand


def test_its_options_with_the_file_make_the_same_again(tmp_path):
    path = save_policy(tmp_path / "p.yaml", Depths(attention=4, mlp=1, query=2, keep=9))
    pruner = create_pruner("dop", policy=path)
    options = json.loads(json.dumps(dataclasses.asdict(pruner) | {"base": dict(pruner.base)}))
    options = {f.name: options[f.name] for f in dataclasses.fields(pruner) if f.init}
    assert create_pruner("dop", **options) == pruner
    assert create_pruner("dop", **{key: value for key, value in options.items() if key != "policy"}) != pruner


def test_the_resolved_configuration_is_the_same_run(tmp_path):
    path = save_policy(tmp_path / "p.yaml", Depths(attention=4, mlp=1, query=2, keep=9))
    run = {"task": "scenes", "pruner": {"name": "dop", "policy": path}, "budget": {"keep_tokens": [30, 20]}}
    built = build(parse_config(run))
    cells = [(cell.label, cell.budget) for cell in built.cells if cell.label.startswith("dop")]
    label = "dop base=(random positions=original seed=4) policy=p"
    assert cells == [(label, Budget(keep_tokens=9))]  # once: the budget is the policy's
    resolved = json.loads(json.dumps(built.config.to_mapping()))
    assert resolved["pruner"]["base"] == BASE | {"segments": "apart"}
    assert resolved["pruner"]["attention_depth"] == 4
    again = build(parse_config(resolved))
    assert run_id(again.config) == run_id(built.config)
    assert [(cell.label, cell.part, cell.budget) for cell in again.cells] == [
        (cell.label, cell.part, cell.budget) for cell in built.cells
    ]
    save_policy(tmp_path / "p.yaml", Depths(attention=5, mlp=1, query=2, keep=9))  # fitted anew: another run
    assert run_id(build(parse_config(run)).config) != run_id(built.config)
    with pytest.raises(ConfigError, match=r"option 'attention_depth' is 4, but policy '.*p.yaml' says 5"):
        build(parse_config(resolved))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"mlp_depth": 3}, "mlp_depth"),
        ({"keep_tokens": 8}, "keep_tokens"),
        ({"attention": "update_only"}, "attention"),
        ({"base": {"name": "random", "seed": 5}}, "base"),
    ],
    ids=str,
)
def test_nothing_beside_a_policy_is_ignored(tmp_path, options, name):
    path = save_policy(tmp_path / "p.yaml", Depths(attention=4, mlp=1, query=2, keep=9))
    with pytest.raises(ConfigError, match=f"option '{name}' is .*, but policy '.*' says"):
        create_pruner("dop", policy=path, **options)
    same = {"mlp_depth": 1, "keep_tokens": 9, "base": {"name": "random", "seed": 4, "positions": "original"}}
    assert create_pruner("dop", policy=path, **same) == create_pruner("dop", policy=path)


def test_policies_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"policy '.*none.yaml' cannot be read"):
        create_pruner("dop", policy=str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"policy '.*bad.yaml' has format None"):
        create_pruner("dop", policy=str(tmp_path / "bad.yaml"))
    path = save_policy(tmp_path / "p.yaml", Depths(attention=6, mlp=1, keep=30))
    with pytest.raises(ConfigError, match="6 layers deep, but the LLM has 4"):
        create_pruner("dop", policy=path).steps(SPEC)
    shallow = create_pruner("dop", policy=save_policy(tmp_path / "p.yaml", Depths(attention=3, mlp=1, keep=30)))
    with pytest.raises(BudgetError, match="30 exceeds the 25"):
        shallow.schedule(SPEC, shallow.budget, 25)
    path = save_policy(tmp_path / "p.yaml", Depths(attention=3, mlp=1, keep=30), {"name": "randm"})
    with pytest.raises(tp.TokenPruneError, match="did you mean 'random'"):
        create_pruner("dop", policy=path)
