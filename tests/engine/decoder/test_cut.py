"""Caches that are cut: the prompt sees everything, the answer what is left; memory shrinks by as much."""

import pytest
import torch

import tokenprune as tp
from tokenprune.adapters.cache_argument import cache_of
from tokenprune.core.errors import ModelError
from tokenprune.costs.flops import llm_decode_flops
from tokenprune.costs.memory import kv_cache_bytes_by_layer, planned_kv_bytes_by_layer
from tokenprune.engine.loading import session_for
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.testing.pruner_on_models import TINY
from tokenprune.testing.pruners import InCaches, Within

STEPS = 9
DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False, "max_new_tokens": STEPS}


@pytest.fixture(params=["sdpa", "eager"])
def llava(request):
    return shared_llava(request.param)


class Watched(InCaches):
    """Remembers what it selected."""

    def _select(self, tokens, k):
        self.seen.append(super()._select(tokens, k))
        return self.seen[-1]


def watched(**options):
    pruner = Watched(**options)
    object.__setattr__(pruner, "seen", [])
    return pruner


def generated(model, inputs, **how):
    out = model.generate(**inputs, **DETAILS, **how)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1), cache_of(out)


def lengths(cache):
    return [layer.keys.shape[2] for layer in cache.layers]


@pytest.mark.parametrize("layers", [(1,), (1, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
def test_the_answer_sees_what_is_left_and_the_prompt_saw_everything(llava, rows, layers):
    model, processor = llava
    inputs = ask(processor, *rows)
    _, whole, _ = generated(model, inputs)
    with tp.prune(model, processor, InCaches(layers=layers), keep_tokens=7) as trace:
        tokens, logits, cache = generated(model, inputs)
    wanted = masked_layers_logits(model, inputs, trace.stages, ["original"] * len(layers), tokens)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    assert torch.equal(logits[:, 0], whole[:, 0])  # the first token is the prompt's
    assert not torch.equal(logits[:, 1:], whole[:, 1:])
    assert [stage.counts for stage in trace.stages] == [[7 * n for n in rows]] * len(layers)
    length = inputs["input_ids"].shape[1]
    cut = [layer for layer in layers if layer]
    short = [length + STEPS - 1 - 18 * max(rows) if i in cut else length + STEPS - 1 for i in range(4)]
    assert lengths(cache) == short


@pytest.mark.parametrize("how", ["alike", "ragged"])
@pytest.mark.parametrize("layers", [(2,), (0, 3)], ids=str)
@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
def test_each_head_keeps_its_own(llava, rows, layers, how):
    model, processor = llava
    inputs, pruner = ask(processor, *rows), watched(layers=layers, by_heads=how)
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        tokens, logits, _ = generated(model, inputs)
    assert (tokens[:, 1:] != tokens[:, :1]).any()
    heads = {layer: by_row(pruner.seen, at, len(set(rows))) for at, layer in enumerate(layers)}
    wanted = masked_layers_logits(model, inputs, trace.stages, ["original"] * len(layers), tokens, heads=heads)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    different = heads[layers[-1]][0]
    assert not torch.equal(different[0], different[1])
    assert (how == "ragged") == any(int(row[0].sum()) != int(row[1].sum()) for row in heads[layers[-1]])
    assert [stage.counts for stage in trace.stages] == [[7 * n for n in rows]] * len(layers)


@pytest.mark.parametrize("how", ["no", "ragged"])
def test_behind_a_stage_that_closes_gaps(llava, how):
    model, processor = llava
    inputs, pruner = ask(processor, 1, 2), watched(layers=(2,), by_heads=how)
    with tp.prune(model, processor, [Within(layers=(1,), positions="repacked"), pruner], keep_tokens=7) as trace:
        tokens, logits, _ = generated(model, inputs)
    stages, visual = trace.stages, 25 * torch.tensor([1, 2])
    kept = [row for selection in pruner.seen for row in (selection.kept[:, None] if how == "no" else selection.heads)]
    heads = [torch.zeros(len(row), int(n), dtype=torch.bool) for row, n in zip(kept, visual, strict=True)]
    for row, (wide, narrow) in enumerate(zip(heads, kept, strict=True)):
        wide[:, stages[0].keep[row]] = narrow  # numbers among those that the first stage left
    wanted = masked_layers_logits(model, inputs, stages, ["repacked", "original"], tokens, heads={2: heads})
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pruner", [InCaches(), InCaches(by_heads="alike"), Within(earlier_caches=True)], ids=str)
def test_bytes_of_the_caches_are_those_of_the_plan(llava, pruner):
    model, processor = llava
    inputs, spec = ask(processor, 1), session_for(model, processor).adapter.spec
    with tp.prune(model, processor, pruner, keep_tokens=7):
        cache = cache_of(model(**inputs))
    alive = pruner.alive(spec, pruner.schedule(spec, tp.Budget(keep_tokens=7), 25), 25)
    plan = pruner.plan(spec, alive, 25)
    text = int((inputs["input_ids"] != model.config.image_token_id).sum())
    assert planned_kv_bytes_by_layer(spec, plan, text, 4) == kv_cache_bytes_by_layer(cache)
    assert plan.prefill_flops(spec.llm, text) > 0


def test_behind_a_cut_cache_all_tokens_are_left():
    pruner, spec = InCaches(layers=(1, 2)), TINY
    assert pruner.arriving(spec, (3, 3), 25) == (25, 25, 25)
    assert pruner.alive(spec, (3, 3), 25) == (3, 3)
    plan = pruner.plan(spec, (3, 3), 25)
    assert plan.cached == (None, 3, 3, None)
    assert plan.prefill_flops(spec.llm, 9) == tp.OperationPlan.drop_at(spec, (), (), 25).prefill_flops(spec.llm, 9)
    assert llm_decode_flops(spec, plan, 9) < llm_decode_flops(spec, tp.OperationPlan.drop_at(spec, (), (), 25), 9)


def by_row(seen, stage, groups):
    """What heads keep in each row; rows of different numbers of images were selected one after the other."""
    return [row for selection in seen[stage * groups : (stage + 1) * groups] for row in selection.heads]


def test_all_that_is_kept_is_the_model_bit_for_bit(llava):
    model, processor = llava
    inputs = ask(processor, 1, 2)
    _, plain, _ = generated(model, inputs)
    for how in ("no", "alike"):
        with tp.prune(model, processor, InCaches(by_heads=how), keep_ratio=1.0):
            assert torch.equal(generated(model, inputs)[1], plain)


@pytest.mark.parametrize("how", ["no", "alike", "ragged"])
def test_a_sample_alone_is_the_same_in_a_batch(llava, how):
    model, processor = llava
    batch = ask(processor, 1, 2)
    with tp.prune(model, processor, InCaches(by_heads=how), keep_tokens=5):
        together = generated(model, batch)[1]
        alone = generated(model, ask(processor, 1))[1]
    torch.testing.assert_close(alone[0], together[0], atol=1e-4, rtol=0)


def test_beams(llava):
    model, processor = llava
    inputs = ask(processor, 1, 1)
    with tp.prune(model, processor, InCaches(by_heads="ragged"), keep_tokens=5) as trace:
        one = model.generate(**inputs, max_new_tokens=5, num_beams=3, do_sample=False)
    assert [stage.counts for stage in trace.stages] == [[5, 5]] * 2
    assert one.shape[1] == inputs["input_ids"].shape[1] + 5


@pytest.mark.parametrize("after", [None, "attention"])
@pytest.mark.parametrize("positions", ["original", "repacked"])
@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
def test_what_leaves_a_layer_leaves_the_caches_before_it(llava, rows, positions, after):
    model, processor = llava
    inputs, pruner = ask(processor, *rows), Within(layers=(1, 3), positions=positions, after=after, earlier_caches=True)
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        tokens, logits, cache = generated(model, inputs)
    wanted = masked_layers_logits(model, inputs, trace.stages, [positions] * 2, tokens)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    length = inputs["input_ids"].shape[1] + STEPS - 1
    assert lengths(cache) == [length, *[length - 18 * max(rows)] * 3]  # the first layer's stays, and is masked


@pytest.mark.parametrize("pruner", [InCaches(), Within(earlier_caches=True)], ids=["cache", "earlier"])
def test_without_a_cache_the_answer_could_not_be_told_from_the_prompt(pruner):
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1)
    with tp.prune(model, processor, pruner, keep_tokens=5):
        model(**inputs, use_cache=False)  # nothing comes after it
        with pytest.raises(ModelError, match="leave use_cache on"):
            model.generate(**inputs, max_new_tokens=2, do_sample=False, use_cache=False)


def test_static_caches_are_refused():
    model, processor = shared_llava("sdpa")
    with (
        tp.prune(model, processor, InCaches(), keep_tokens=5),
        pytest.raises(ModelError, match="needs a dynamic cache"),
    ):
        model.generate(**ask(processor, 1), max_new_tokens=2, do_sample=False, cache_implementation="static")


def test_operations_are_refused_with_it():
    model, processor = shared_llava("sdpa")
    with (
        tp.prune(model, processor, "dop", base=InCaches(layers=(1,)), mlp_depth=2, keep_tokens=5),
        pytest.raises(ModelError, match=r"cannot be combined with the stage cache\(1\)"),
    ):
        model(**ask(processor, 1))
