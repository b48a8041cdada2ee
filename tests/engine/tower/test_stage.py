"""Stages inside the vision tower of an MLLM: dropping is masking from that layer on, and keeping all is the model."""

import gc
import threading
import weakref

import pytest
import torch
from tiny_towers import MLLMS, PREFIX, InTower, keeps_of, layers_read, masked_family, read

import tokenprune as tp
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import TowerAttention, TowerKeys
from tokenprune.core.stages import PRE_LLM, PROJECTOR, Stage, decoder
from tokenprune.engine.decoder.decoder_checks import HOOKS_RUN_ONCE
from tokenprune.engine.loading import session_for
from tokenprune.engine.tower.forward import TowerForward
from tokenprune.engine.trace import StageTrace
from tokenprune.testing.adapter_state import state
from tokenprune.testing.checks import check_identity, generated
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.towers.clip import CLIP

KEEP = 7
BEHIND = [tp.stages.tower(layer, after="attention") for layer in range(3)]


def check_masking(name, attention, pruner, rows, positions="repacked"):
    """Answers are those of the whole prompt, in whose tower and LLM the tokens that left are masked."""
    family = MLLMS[name]
    model, processor = family.build(attention)
    inputs = family.ask(processor, *rows)
    with tp.prune(model, processor, pruner, keep_tokens=KEEP) as trace:
        tokens, logits = generated(model, inputs)
    number = trace.counts[0][0] // max(rows[0], 1)
    inside = [stage for stage in trace.stages if stage.stage.place == "tower"]
    # What leaves between attention and MLP is seen by its own layer.
    first = [stage.stage.layer + (stage.stage.after is not None) for stage in inside]
    family = masked_family(name, {at: keeps_of(stage, number) for at, stage in zip(first, inside, strict=True)})
    later = [stage for stage in trace.stages if stage.stage.place != "tower"]
    stages = [StageTrace(PRE_LLM, inside[-1].keep, inside[-1].counts), *later]
    wanted = masked_layers_logits(model, inputs, stages, [positions] * len(stages), tokens, family=family)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    assert [after for _, after in trace.counts] == [KEEP * images for images in rows]
    return trace


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "stages", [(2,), (0,), (1, 2), (BEHIND[0],), (BEHIND[2],), (1, BEHIND[1]), (BEHIND[0], 1, BEHIND[1], BEHIND[2])]
)
@pytest.mark.parametrize("name", MLLMS)
def test_dropping_is_masking_from_that_layer_on(name, stages, attention):
    trace = check_masking(name, attention, InTower(*stages), (1, 2))
    named = [each if isinstance(each, Stage) else tp.stages.tower(each) for each in stages]
    assert [stage.stage for stage in trace.stages] == named
    assert str(BEHIND[2]) == "tower(2, after=attention)"


@pytest.mark.parametrize("positions", ["original", "repacked"])
@pytest.mark.parametrize("after", [(PRE_LLM,), (PROJECTOR,), (decoder(2),), (PRE_LLM, decoder(2))], ids=str)
def test_stages_of_other_places_follow(after, positions):
    trace = check_masking("llava", "sdpa", InTower(1, after=after, positions=positions), (1, 0, 2), positions)
    assert [stage.stage for stage in trace.stages] == [tp.stages.tower(1), *after]
    sizes = [stage.counts[2] for stage in trace.stages]
    assert sizes == sorted(sizes, reverse=True)
    assert 50 > sizes[0] > sizes[-1] == 2 * KEEP
    for one, next_one in zip(trace.stages, trace.stages[1:], strict=False):
        assert set(next_one.keep[2]) < set(one.keep[2])


@pytest.mark.parametrize("layers", [(1,), (0, 2), (BEHIND[0], BEHIND[2])])
@pytest.mark.parametrize("name", MLLMS)
def test_keeping_everything_is_the_model_bit_for_bit(name, layers):
    model, processor = MLLMS[name].build("sdpa")
    check_identity(model, processor, MLLMS[name].ask(processor, 1, 2), InTower(*layers))


@pytest.mark.parametrize("pruner", ["random", "divprune", "uniform"])
@pytest.mark.parametrize("name", MLLMS)
def test_a_sample_alone_is_the_sample_in_a_batch(name, pruner):
    family, chooses = MLLMS[name], tp.create_pruner(pruner)
    model, processor = family.build("sdpa")
    how = InTower(1, 2, select=lambda tokens, k: chooses.select(tokens, k))
    with tp.prune(model, processor, how, keep_tokens=KEEP) as trace:
        tokens, logits = generated(model, family.ask(processor, 2, 1))
        together = [stage.keep[1] for stage in trace.stages]
        alone, alone_logits = generated(model, family.ask(processor, 2, 1, only=1))
    assert [stage.keep[0] for stage in trace.stages] == together
    assert torch.equal(alone, tokens[1:])
    torch.testing.assert_close(alone_logits, logits[1:], atol=5e-5, rtol=0)


def test_nothing_is_left_on_the_model():
    model, processor = MLLMS["llava"].build("sdpa")
    inputs = MLLMS["llava"].ask(processor, 1)
    model.generate(**inputs, max_new_tokens=1, output_hidden_states=True)  # transformers leaves hooks of its own
    before = state(model)

    def fails(tokens, k):
        raise KeyboardInterrupt

    with tp.prune(model, processor, InTower(1, 2, after=(decoder(1),)), keep_tokens=KEEP):
        model.generate(**inputs, max_new_tokens=2)
    with pytest.raises(KeyboardInterrupt), tp.prune(model, processor, InTower(1, select=fails), keep_tokens=KEEP):
        model.generate(**inputs, max_new_tokens=2)
    assert state(model) == before


def test_nothing_holds_a_forward():
    """Its hidden states go with it, and are not left to a garbage collection."""
    made, held = [], TowerForward.__init__

    def noted(self, *args, **kwargs):
        held(self, *args, **kwargs)
        made.append(weakref.ref(self))

    model, processor = MLLMS["llava"].build("sdpa")
    session, inputs = session_for(model, processor), MLLMS["llava"].ask(processor, 1)
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TowerForward, "__init__", noted)
            session.prune_inputs(inputs, InTower(1, 2, requires=[TowerKeys()]), tp.Budget(keep_tokens=KEEP))
        assert [each() for each in made] == [None]
    finally:
        gc.enable()


def test_threads_see_their_own_stages():
    model, processor = MLLMS["llava"].build("sdpa")
    inputs, found = MLLMS["llava"].ask(processor, 1, 2), {}
    cases = {"one": InTower(1), "other": InTower(2), "none": None}

    def run(name):
        budget = {} if cases[name] is None else {"keep_tokens": KEEP}
        with tp.prune(model, processor, cases[name], **budget):
            found[name] = [model.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)]
            found[name] += [generated(model, inputs)[1] for _ in range(3)]

    for name in cases:
        run(name)
    right = {name: results[1] for name, results in found.items()}
    threads = [threading.Thread(target=run, args=(name,)) for name in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, (_, *logits) in found.items():
        assert all(torch.equal(each, right[name]) for each in logits)
    assert not torch.equal(right["one"], right["other"])


def by_hand(name, model, pixels, layer, change):
    """(I, K, D) visual tokens, if ``change`` is made to the patches (I, N, V) at the input of a layer."""
    tower, prefix = model.base_model.vision_tower, PREFIX[name]
    hidden = tower.embeddings(pixels)
    hidden = tower.pre_layrnorm(hidden) if name == "llava" else hidden
    for index, block in enumerate(tower.encoder.layers[: layers_read(name, model)]):
        if index == layer:
            hidden = torch.cat([hidden[:, :prefix], change(hidden[:, prefix:])], 1)
        hidden = block(hidden, None)
    return read(name, model, hidden)


@torch.no_grad()
@pytest.mark.parametrize("name", MLLMS)
def test_what_is_folded_behind_an_attention_goes_through_the_mlp_of_its_layer(name):
    def select(tokens, k):
        keep, groups = torch.arange(k), torch.arange(tokens.num_tokens) % k
        rows, into = tokens.batch_size, groups.repeat(tokens.batch_size, 1)
        return tp.TokenSelection(keep.repeat(rows, 1), tokens.num_tokens, into=into)

    model, processor = MLLMS[name].build("sdpa")
    session, inputs = session_for(model, processor), MLLMS[name].ask(processor, 1, 2)
    pruned = session.prune_inputs(inputs, InTower(BEHIND[1], select=select), tp.Budget(keep_tokens=KEEP))
    tower, prefix = model.base_model.vision_tower, PREFIX[name]
    hidden = tower.embeddings(inputs["pixel_values"])
    hidden = tower.pre_layrnorm(hidden) if name == "llava" else hidden
    share = torch.nn.functional.one_hot(torch.arange(hidden.shape[1] - prefix) % KEEP, KEEP).float().mT
    for index, block in enumerate(tower.encoder.layers[: layers_read(name, model)]):
        hidden = hidden + block.self_attn(block.layer_norm1(hidden), attention_mask=None)[0]
        if index == 1:
            means = share @ hidden[:, prefix:] / share.sum(1, keepdim=True)
            hidden = torch.cat([hidden[:, :prefix], means], 1)
        hidden = hidden + block.mlp(block.layer_norm2(hidden))
    output = pruned.inputs["mm_encoder_outputs"]["image"].pooler_output
    found = output if isinstance(output, torch.Tensor) else torch.cat(output)
    torch.testing.assert_close(found.flatten(0, -2), read(name, model, hidden).flatten(0, 1), atol=1e-5, rtol=1e-4)


def biased(tokens, k):
    """Keeps the first patches, which count the more as keys the later they come; the next stage says nothing of it."""
    keep = torch.arange(k).repeat(tokens.batch_size, 1)
    bias = None if tokens.history else keep / 4.0
    return tp.TokenSelection(keep, tokens.num_tokens, bias=bias)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MLLMS)
def test_a_bias_is_added_to_the_logits_of_keys(name, attention):
    model, processor = MLLMS[name].build(attention)
    session, inputs = session_for(model, processor), MLLMS[name].ask(processor, 1, 2)
    pruned = session.prune_inputs(inputs, InTower(0, 2, select=biased), tp.Budget(keep_tokens=KEEP))
    first, last = (int(kept.sum()) // 3 for _, kept in pruned.early)
    tower, prefix = model.base_model.vision_tower, PREFIX[name]
    hidden = tower.embeddings(inputs["pixel_values"])
    hidden = tower.pre_layrnorm(hidden) if name == "llava" else hidden
    for index, block in enumerate(tower.encoder.layers[: layers_read(name, model)]):
        hidden = hidden[:, : prefix + (first if index < 2 else last)]
        bias = torch.cat([torch.zeros(prefix), torch.arange(hidden.shape[1] - prefix) / 4.0])
        hidden = block(hidden, bias.expand(3, 1, len(bias), -1))
    output = pruned.inputs["mm_encoder_outputs"]["image"].pooler_output
    found = output if isinstance(output, torch.Tensor) else torch.cat(output)
    torch.testing.assert_close(found.flatten(0, -2), read(name, model, hidden).flatten(0, 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("stages", "after"), [((1, 2), ()), ((1,), (PRE_LLM,))], ids=str)
def test_attention_with_a_bias_is_not_read(stages, after):
    model, processor = MLLMS["llava"].build("sdpa")
    session, inputs = session_for(model, processor), MLLMS["llava"].ask(processor, 1)
    pruner = InTower(*stages, after=after, requires=[TowerAttention("cls")], select=biased)
    with pytest.raises(ModelError, match="cls_attention cannot be read behind a stage that puts a bias on keys"):
        session.prune_inputs(inputs, pruner, tp.Budget(keep_tokens=KEEP))


def test_a_kernel_without_a_bias_is_refused():
    model, _ = MLLMS["llava"].make("sdpa")
    CLIP.check_bias(model)
    model.base_model.vision_tower.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ModelError, match="needs sdpa or eager attention, not flash_attention_2"):
        CLIP.check_bias(model)


def test_checkpointing_with_a_stage_behind_an_attention_is_refused():
    model, processor = MLLMS["llava"].make("sdpa")
    for layer in model.train().base_model.vision_tower.encoder.layers:
        layer.gradient_checkpointing = True
    session, inputs = session_for(model, processor), MLLMS["llava"].ask(processor, 1)
    with pytest.raises(ModelError, match=r"leave behind their attention; call model\.gradient_checkpointing_disable"):
        session.prune_inputs(inputs, InTower(BEHIND[1]), tp.Budget(keep_tokens=KEEP))


@torch.no_grad()
@pytest.mark.parametrize("name", MLLMS)
@pytest.mark.parametrize("kind", ["into", "merged"])
def test_folded_and_made_features_go_through_the_later_layers(name, kind):
    """Each kept patch, the first ones, is the weighted mean of itself and those at equal distances behind it."""

    def fold(x, k):
        number = x.shape[1]
        weight = torch.linspace(0.5, 2, number)
        groups = torch.arange(number) % k
        share = torch.nn.functional.one_hot(groups, k).mT * weight
        return (share / share.sum(1, keepdim=True)) @ x, groups.expand(len(x), -1), weight.expand(len(x), -1)

    def select(tokens, k):
        made, into, weight = fold(tokens.features, k)
        keep = torch.arange(k).expand(tokens.batch_size, -1)
        if kind == "merged":
            return tp.TokenSelection(keep, tokens.num_tokens, merged=made)
        return tp.TokenSelection(keep, tokens.num_tokens, into=into, weight=weight)

    model, processor = MLLMS[name].build("sdpa")
    session, inputs = session_for(model, processor), MLLMS[name].ask(processor, 1, 2)
    pruned = session.prune_inputs(inputs, InTower(2, select=select), tp.Budget(keep_tokens=KEEP))
    wanted = by_hand(name, model, inputs["pixel_values"], 2, lambda x: fold(x, KEEP)[0])
    output = pruned.inputs["mm_encoder_outputs"]["image"].pooler_output
    found = output if isinstance(output, torch.Tensor) else torch.cat(output)
    torch.testing.assert_close(found.flatten(0, -2), wanted.flatten(0, 1), atol=1e-5, rtol=1e-4)
    assert pruned.selection.keep.tolist() == [list(range(KEEP))] * 3


def test_position_ids_and_placeholders_go_with_the_patches_that_stay():
    model, processor = MLLMS["llava"].build("sdpa")
    session, inputs = session_for(model, processor), MLLMS["llava"].ask(processor, 1)
    where = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    gap = len(where) - KEEP
    for positions in ("original", "repacked"):
        pruned = session.prune_inputs(inputs, InTower(1, positions=positions), tp.Budget(keep_tokens=KEEP))
        (keep,) = pruned.selection.keep
        numbers = pruned.inputs["position_ids"][0]
        assert pruned.inputs["input_ids"].shape[1] == inputs["input_ids"].shape[1] - gap
        place = pruned.inputs["input_ids"][0] == model.config.image_token_id
        if positions == "original":
            assert numbers[place].tolist() == where[keep].tolist()
        else:
            assert numbers.tolist() == list(range(len(numbers)))


def test_gradients_go_through_the_patches_that_stay():
    model, processor = MLLMS["llava"].make("sdpa")
    inputs = MLLMS["llava"].ask(processor, 1)
    pixels = inputs["pixel_values"].requires_grad_()
    with tp.prune(model, processor, InTower(0), keep_tokens=KEEP) as trace:
        model(**inputs).logits[:, -1].sum().backward()
    side = model.config.vision_config.patch_size
    patches = pixels.grad.unfold(2, side, side).unfold(3, side, side).abs().sum((1, 4, 5)).flatten()
    assert (patches > 0).nonzero()[:, 0].tolist() == trace.stages[0].keep[0]


@pytest.mark.parametrize("after", [(PRE_LLM,), (PROJECTOR,), (decoder(1),), (PRE_LLM, decoder(1))], ids=str)
def test_later_stages_are_told_what_a_stage_in_the_tower_said(after):
    """Labels go with the patches that stay, until a stage says something else; counts are of what arrived."""
    seen, keeps = [], []

    def select(tokens, k):
        seen.append((tokens.labels, tokens.history))
        keep = (torch.arange(k) * (tokens.num_tokens // k)).expand(tokens.batch_size, -1)
        keeps.append(keep)
        labels = 100 + keep if len(seen) == 1 else None
        return tp.TokenSelection(keep, tokens.num_tokens, labels=labels)

    model, processor = MLLMS["llava"].build("sdpa")
    outside = InTower(select=select)
    pruner = InTower(0, 2, after=after, inside=outside, select=select)
    with torch.no_grad(), tp.prune(model, processor, pruner, keep_tokens=3):
        model(**MLLMS["llava"].ask(processor, 2))
    assert len(seen) == 2 + len(after)
    (none, start), *later = seen
    assert none is None
    assert start == ()
    labels, total, arrived = 100 + keeps[0], 25, []
    for keep, (told, history), stage in zip([None, *keeps[1:]], later, [None, *after], strict=False):
        labels = labels if keep is None else labels.gather(1, keep)
        arrived.append(total)
        total = labels.shape[1]
        inside = stage is not None and stage.inside
        if inside:  # a row of the batch, with both images
            labels = labels.flatten()[None]
        if stage == PROJECTOR:  # nothing is said of CLS, which is among the others there
            assert (told[:, 0] == -1).all()
            told = told[:, 1:]
        assert torch.equal(told, labels)
        assert history == tuple(2 * each if inside else each for each in arrived)
        total = labels.shape[1] // (1 + inside)


@pytest.mark.skipif(not HOOKS_RUN_ONCE, reason="transformers before 5.23 checkpoint what hooks sit on; refused there")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    """A checkpointed layer of the tower runs again in the backward pass, on the patches that it was given."""
    inputs = None
    found = []
    for checkpointing in (False, True):
        model, processor = MLLMS["llava"].make("sdpa")
        inputs = inputs or MLLMS["llava"].ask(processor, 1)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        pixels = inputs["pixel_values"].clone().requires_grad_()
        with tp.prune(model, processor, InTower(1, 2), keep_tokens=KEEP):
            model(**{**inputs, "pixel_values": pixels}, use_cache=False).logits[:, -1].sum().backward()
        found.append(pixels.grad)
    torch.testing.assert_close(*found)
    assert found[0].abs().sum() > 0
