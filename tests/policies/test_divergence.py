"""The divergence of policies, against computing it by hand: each question alone, all work done and thrown away."""

import functools

import pytest
import torch

import tokenprune as tp
from tokenprune.core.budget import Budget
from tokenprune.core.signals import PairedImage
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.policies.divergence import Batch, Objective, early_signals, measure
from tokenprune.pruners.dop import DOP
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.none import NoPruning
from tokenprune.tasks.scenes import Scenes
from tokenprune.testing.families.llava import shared_llava, tiny_llava, tiny_processor
from tokenprune.testing.masked_operations import masked_operations_logits
from tokenprune.testing.pruners import Project

LAYERS, TOTAL = 4, 25
BASE = Project(positions="original")
SAMPLES = Scenes(num_samples=3).samples()
OBJECTIVES = {
    "first_token": Objective(),
    "reverse": Objective(reverse=True),
    "teacher_forced": Objective(teacher_forced=True, max_new_tokens=7),
    "update_only": Objective(update_only=True),
}
POINTS = [("attention", 1), ("attention", 3), ("mlp", 0), ("query", 1), ("tokens", 9)]


@functools.cache
def ending():
    """An adapter whose model ends the answers to some questions early: its end is what it says third to the first."""
    adapter = adapter_for(tiny_llava(), tiny_processor())
    inputs = Session(adapter).prepare(SAMPLES[:1]).inputs
    said = adapter.model.generate(**inputs, do_sample=False, max_new_tokens=3)[0, inputs["input_ids"].shape[1] :]
    assert len(set(said.tolist())) == 3
    adapter.model.generation_config.eos_token_id = int(said[2])
    return adapter


@functools.cache
def plain():
    return adapter_for(*shared_llava("sdpa"))


@functools.cache
def batch(name="first_token"):
    return Batch(Session(ending()), SAMPLES, OBJECTIVES[name], frozenset())


def changed(varied, update_only=False):
    """The depths of a policy that varies one thing."""
    full = {"attention": LAYERS, "mlp": LAYERS, "keep": TOTAL}
    name, value = varied
    return Depths(**full | {"keep" if name == "tokens" else name: value}, update_only=update_only)


def by_hand(sample, depths, objective):
    """KL of one question, alone and unpadded: both distributions from a loop over layers that computes everything."""
    adapter = ending()
    model, inputs = adapter.model, Session(adapter).prepare([sample]).inputs
    said = [0]
    if objective.teacher_forced:
        output = model.generate(**inputs, do_sample=False, max_new_tokens=objective.max_new_tokens)
        said = output[0, inputs["input_ids"].shape[1] :].tolist()
    active = depths.plan(adapter.spec, TOTAL).active[..., 1:]
    encoded = Session(adapter).encode(inputs)
    kept = (
        BASE.select(Session(adapter).visual_tokens(inputs, frozenset(), encoded=encoded), depths.keep).keep[0].tolist()
    )
    groups = [[0 if token in kept else -1 for token in range(TOTAL)]]
    answers = torch.tensor([said])
    pruned = masked_operations_logits(model, inputs, active, groups, answers)[0].log_softmax(-1)
    whole = masked_operations_logits(model, inputs, torch.ones_like(active), [[0] * TOTAL], answers)[0].log_softmax(-1)
    p, q = (pruned, whole) if objective.reverse else (whole, pruned)
    return len(said), sum(float((a.exp() * (a - b)).sum()) for a, b in zip(p, q, strict=True)) / len(said)


def divergences(batch, varied):
    if varied[0] == "tokens":
        return batch.pruned(BASE, Budget(keep_tokens=varied[1]))
    return batch.depths(varied)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_by_hand(name):
    objective, lengths = OBJECTIVES[name], set()
    for varied in POINTS:
        if objective.update_only and varied in (("query", 1), ("attention", 3)):
            continue  # has no meaning; is dead work
        depths, found = changed(varied, objective.update_only), divergences(batch(name), varied)
        for sample, divergence in zip(SAMPLES, found.tolist(), strict=True):
            length, expected = by_hand(sample, depths, objective)
            lengths.add(length)
            assert divergence == pytest.approx(expected, abs=2e-5), varied
            assert expected > 1e-3
    assert (len(lengths) > 1) == objective.teacher_forced  # some answers end early


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("varied", [("attention", 2), ("mlp", 1), ("query", 2)], ids=str)
def test_replayed_layers_and_dop_agree(name, varied):
    """A depth varied alone is DOP that keeps all tokens."""
    update_only = OBJECTIVES[name].update_only
    if varied[0] == "query" and update_only:
        return
    pruner = DOP.of(BASE, changed(varied, update_only))
    whole = batch(name).pruned(pruner, Budget(keep_tokens=TOTAL))
    torch.testing.assert_close(batch(name).depths(varied), whole, atol=1e-6, rtol=1e-4)


def test_a_question_alone_is_the_question_in_a_batch():
    for name in ("first_token", "teacher_forced"):
        alone = [Batch(Session(ending()), [sample], OBJECTIVES[name], frozenset()) for sample in SAMPLES]
        for varied in POINTS:
            found = torch.cat([divergences(one, varied) for one in alone])
            torch.testing.assert_close(found, divergences(batch(name), varied), atol=1e-5, rtol=1e-4)
    lengths = batch().whole.inputs["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1  # the batch is padded


def test_dead_work_changes_nothing():
    assert batch().depths(("mlp", LAYERS - 1)).abs().max() < 1e-6
    assert batch().depths(("query", LAYERS - 1)).abs().max() < 1e-6
    assert batch().depths(("attention", LAYERS)).abs().max() < 1e-6
    policies = [DOP.of(BASE, Depths(attention=2, mlp=mlp, keep=TOTAL)) for mlp in range(LAYERS + 1)]
    values = [batch().pruned(policy, Budget(keep_tokens=TOTAL)) for policy in policies]
    assert all(torch.equal(values[1], value) for value in values[2:])
    assert not torch.allclose(values[0], values[1], rtol=0.01)


def test_update_only_leaves_keys_and_values():
    removed, updates = batch().depths(("attention", 1)), batch("update_only").depths(("attention", 1))
    queries = batch().depths(("query", 1))
    torch.testing.assert_close(updates, queries, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(updates, removed, rtol=0.01)


def test_everything_kept_diverges_by_nothing():
    for name in OBJECTIVES:
        assert batch(name).pruned(BASE, Budget(keep_tokens=TOTAL)).abs().max() < 1e-6


def test_a_pruner_inside_the_llm():
    """FastV's divergence is that of what it generates."""
    pruner = tp.create_pruner("fastv", layer=2)
    model, prepared = ending().model, Session(ending()).prepare(SAMPLES)
    with tp.prune(model, ending().processor, pruner, keep_tokens=7):
        out = model.generate(
            **prepared.inputs, do_sample=False, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
        )
    p, q = batch().replay.logits[:, 0].log_softmax(-1), out.logits[0].log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(batch().pruned(pruner, Budget(keep_tokens=7)), expected, atol=1e-6, rtol=1e-4)


def test_the_answers_are_the_model_s_own():
    teacher = batch("teacher_forced")
    said = (
        Session(ending())
        .generate(
            Session(ending()).prune_inputs(Session(ending()).prepare(SAMPLES).inputs, NoPruning()), max_new_tokens=7
        )
        .output
    )
    lengths = teacher.counts.sum(1).tolist()
    tokens = ending().processor.tokenizer.batch_decode(teacher.answers, skip_special_tokens=True)
    assert lengths[0] == 3  # its end counts: that the answer ends is a part of it
    assert max(lengths) == 7
    for text, whole, length in zip(tokens, said, lengths, strict=True):
        if length == 7:
            assert whole.startswith(text.strip())


def test_measure_adds_up_over_the_questions():
    points = [("mlp", 1), ("tokens", 9)]
    measured = measure(Session(ending()), SAMPLES, Objective(), BASE, points)
    assert measured.divergence.keys() == set(points)
    for point in points:
        assert measured.divergence[point] == pytest.approx(float(divergences(batch(), point).sum()), rel=1e-4)
    assert 0 < measured.forward_seconds < measured.seconds


def test_early_signals():
    session = Session(adapter_for(*shared_llava("sdpa"), text_tower="is only named"))
    assert early_signals(session, tp.create_pruner("random")) == frozenset()
    assert early_signals(session, tp.create_pruner("fastv", layer=2)) == frozenset()  # what it needs is inside the LLM
    needs = early_signals(session, tp.create_pruner("dop", base={"name": "cdpruner"}))
    assert needs == tp.create_pruner("cdpruner").requires
    assert any(PairedImage("clip") in signal.alternatives for signal in needs)
