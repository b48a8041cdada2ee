"""What a pruner sees at a stage inside the vision tower of an MLLM, and which stages and signals are refused."""

import pytest
import torch
from tiny_towers import MLLMS, PREFIX, InTower

import tokenprune as tp
from tokenprune.core.errors import ConfigError, ModelError
from tokenprune.core.signals import OneOf, PairedImage, PairedText, PromptEmbeds, TowerAttention, TowerKeys, TowerStates
from tokenprune.core.stages import PRE_LLM, PROJECTOR, decoder
from tokenprune.engine.loading import session_for
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import tiny_llava, tiny_processor
from tokenprune.testing.towers import saved_towers
from tokenprune.towers.text.base import load_text_tower

KEEP = 7
PATCHES = TowerAttention("patches")


def record(model, run):
    """Of each layer of the tower, its keys, attention weights and output, while ``run`` runs the eager model."""
    seen, handles = {}, []

    def note(index, name, part=None):
        def hook(module, args, output):  # the first call is the layer's own; signals may be made by later ones
            seen.setdefault(index, {}).setdefault(name, output if part is None else output[part])

        return hook

    for index, layer in enumerate(model.base_model.vision_tower.encoder.layers):
        handles += [
            layer.self_attn.k_proj.register_forward_hook(note(index, "keys")),
            layer.self_attn.register_forward_hook(note(index, "weights", 1)),
            layer.register_forward_hook(note(index, "states")),
        ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize("name", MLLMS)
def test_signals_are_of_the_layer_before_or_of_one_that_is_named(name):
    """Behind a stage, of the patches that it left alone, whichever layer is named."""
    model, processor = MLLMS[name].build("eager")
    zeroth = TowerAttention("patches", -model.config.vision_config.num_hidden_layers)
    signals = (TowerKeys(), TowerStates(), PATCHES, TowerKeys(0), TowerStates(0), zeroth)
    signals += (TowerAttention("cls"),) if name == "llava" else ()
    tokens, plain = [], InTower()

    def select(given, k):
        tokens.append(given)
        return InTower._select(plain, given, k)

    inputs, prefix = MLLMS[name].ask(processor, 1, 2), PREFIX[name]
    session = session_for(model, processor)
    pruner, budget, kept = InTower(1, 2, requires=signals, select=select), tp.Budget(keep_tokens=KEEP), {}
    seen = record(model, lambda: kept.update(pruned=session.prune_inputs(inputs, pruner, budget)))
    first, second = tokens
    order = kept["pruned"].early
    assert [str(stage) for stage, _ in order] == ["tower(1)", "tower(2)"]
    assert first.grid is not None
    assert second.grid is None
    number = first.num_tokens
    left = order[0][1].view(-1, number).nonzero()[:, 1].view(3, -1)

    def close(found, wanted):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)

    for given, before in ((first, 0), (second, 1)):
        own = seen[before]
        close(given.signal(TowerKeys()), own["keys"][:, prefix:])
        close(given.signal(TowerStates()), own["states"][:, prefix:])
        assert torch.equal(given.features, own["states"][:, prefix:])
        close(given.signal(PATCHES), own["weights"][:, :, prefix:, prefix:].mean(2))
        if name == "llava":
            close(given.signal(TowerAttention("cls")), own["weights"][:, :, 0, 1:])
    rows = torch.arange(3)[:, None]
    earlier = seen[0]
    close(second.signal(TowerKeys(0)), earlier["keys"][:, prefix:][rows, left])
    close(second.signal(TowerStates(0)), earlier["states"][:, prefix:][rows, left])
    received = earlier["weights"][:, :, prefix:, prefix:].mean(2).mT[rows, left].mT
    close(second.signal(zeroth), received)


def test_stages_after_the_tower_see_what_the_tower_computed_of_what_is_left():
    """Keys, attention and states of the layer that the projector reads, and of an earlier one; places in the prompt."""
    signals = (TowerKeys(), TowerStates(), TowerAttention("cls"), TowerKeys(0), TowerStates(1))
    tokens, plain = [], InTower()

    def select(given, k):
        tokens.append(given)
        return InTower._select(plain, given, k)

    model, processor = MLLMS["llava"].build("eager")
    session, inputs = session_for(model, processor), MLLMS["llava"].ask(processor, 1, 2)
    later = InTower(after=(PRE_LLM,), requires=signals, select=select)
    pruner = tp.create_pruner("compose", pruners=(InTower(2), later))
    kept = {}
    seen = record(model, lambda: kept.update(pruned=session.prune_inputs(inputs, pruner, tp.Budget(keep_tokens=KEEP))))
    (given,) = tokens
    number = session.adapter.spec.visual_tokens
    left = kept["pruned"].early[0][1].view(-1, number).nonzero()[:, 1].view(3, -1)
    read, rows = model.config.vision_feature_layer % 5 - 1, torch.arange(3)[:, None]
    own, earlier = seen[read], seen[0]

    def close(found, wanted):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)

    close(given.signal(TowerKeys()), own["keys"][:, 1:])
    close(given.signal(TowerStates()), own["states"][:, 1:])
    close(given.signal(TowerAttention("cls")), own["weights"][:, :, 0, 1:])
    close(given.features, model.base_model.multi_modal_projector(own["states"][:, 1:]))
    close(given.signal(TowerKeys(0)), earlier["keys"][:, 1:][rows, left])
    close(given.signal(TowerStates(1)), seen[1]["states"][:, 1:][rows, left])
    assert given.grid is given.place is None


@pytest.mark.parametrize(("name", "text_tower"), [("llava", "clip"), ("paligemma", "siglip")])
def test_patches_that_are_left_are_embedded_in_the_space_of_the_text_tower(name, text_tower):
    tokens, plain = [], InTower()

    def select(given, k):
        tokens.append(given)
        return InTower._select(plain, given, k)

    model, processor = MLLMS[name].build("sdpa")
    session = session_for(model, processor, text_tower=saved_towers()[text_tower])
    inputs = MLLMS[name].ask(processor, 1, 2)
    paired = InTower(after=(PRE_LLM,), requires=[PairedImage(), PairedText(), TowerStates()], select=select)
    pruner = tp.create_pruner("compose", pruners=(InTower(1), paired))
    session.prune_inputs(inputs, pruner, tp.Budget(keep_tokens=KEEP))
    (given,) = tokens
    tower = load_text_tower(model, saved_towers()[text_tower], None)
    wanted = tower.project(given.signal(TowerStates()), normed=name == "paligemma")
    torch.testing.assert_close(given.signal(PairedImage()), wanted, atol=1e-5, rtol=1e-4)
    assert given.signal(PairedText()).shape[0] == 3


def test_pictures_of_which_patches_have_left_are_not_resized():
    model, processor = MLLMS["llava"].build("sdpa")
    session, inputs = session_for(model, processor), MLLMS["llava"].ask(processor, 1)
    pruner = tp.create_pruner("compose", pruners=(InTower(1), tp.create_pruner("resize")))
    with pytest.raises(ModelError, match="cannot be resized once patches have left inside the vision tower"):
        session.prune_inputs(inputs, pruner, tp.Budget(keep_tokens=KEEP))


def test_the_trace_numbers_the_patches_of_the_whole_image():
    model, processor = MLLMS["llava"].build("sdpa")
    inputs = MLLMS["llava"].ask(processor, 1, 1)
    for after in ((), (PRE_LLM,)):
        with torch.no_grad(), tp.prune(model, processor, InTower(1, after=after), keep_tokens=KEEP) as trace:
            model(**inputs)
        assert trace.keep.tolist() == trace.stages[-1].keep
        assert trace.counts == [(25, KEEP)] * 2


def refused(name, pruner, message, kind=ModelError, **family):
    model, processor = MLLMS.get(name, families().get(name)).build("sdpa")
    with pytest.raises(kind, match=message), tp.prune(model, processor, pruner, keep_tokens=KEEP):
        pass


@pytest.mark.parametrize(
    ("name", "pruner", "message"),
    [
        (
            "llava",
            InTower(3),
            r"tower\(3\): the projector reads what layer 2 of the vision tower gives; allowed: 0 to 2",
        ),
        ("paligemma", InTower(3), r"tower\(3\): the projector reads what layer 2 .*; allowed: 0 to 2"),
        ("llava", InTower(0, requires=[TowerKeys()]), r"tower\(0\): no layer .* has run there, so there is no keys"),
        ("llava", InTower(1, requires=[TowerKeys(1)]), r"tower_keys\[layer=1\] at tower\(1\): .*; allowed: 0 to 0"),
        ("llava", InTower(2, requires=[TowerKeys(-1)]), r"tower_keys\[layer=-1\] at tower\(2\): .*; allowed: 0 to 1"),
        ("llava", InTower(2, requires=[TowerKeys(9)]), r"the vision tower has 4 layers"),
        (
            "llava",
            InTower(2, requires=[PromptEmbeds()]),
            r"a stage inside the vision tower \(tower\(2\)\) cannot give the signals prompt_embeds; it offers cls_att",
        ),
        ("paligemma", InTower(2, requires=[TowerAttention("cls")]), r"received_attention stands in for cls_attention"),
        ("qwen2_5_vl", InTower(1), r"QwenVLAdapter has no stage tower; allowed: pre_llm, decoder"),
        ("llava_next", InTower(1), r"LlavaNextAdapter has no stage tower; allowed: pre_llm, decoder"),
        ("llava", InTower(1, after=(PROJECTOR, PRE_LLM)), r"stages projector and pre_llm cannot follow one another"),
    ],
)
def test_what_is_refused_before_anything_runs(name, pruner, message):
    refused(name, pruner, message)


def test_stages_come_in_their_order():
    refused("llava", InTower(2, 1), r"prunes at tower\(2\) and then at tower\(1\)", ConfigError)


def test_alternatives_are_those_of_the_tower():
    given = []

    def select(tokens, k):
        given.append(set(tokens.signals))
        return tp.TokenSelection(torch.arange(k).expand(tokens.batch_size, -1), tokens.num_tokens)

    either = OneOf(PromptEmbeds(), TowerAttention("cls"), PATCHES)
    for name, wanted in (("llava", TowerAttention("cls")), ("paligemma", PATCHES)):
        model, processor = MLLMS[name].build("sdpa")
        pruner, inputs = InTower(1, requires=[either], select=select), MLLMS[name].ask(processor, 1)
        session_for(model, processor).prune_inputs(inputs, pruner, tp.Budget(keep_tokens=KEEP))
        assert given.pop() == {str(wanted)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_layer": [-2, -3]}, r"the projector reads several layers of the vision tower, \[2, 1\]"),
        ({"vision_feature_select_strategy": "full"}, r"reads other tokens of the vision tower than its patches"),
        ({"vision_feature_layer": 0}, r"the projector reads what layer -1"),
    ],
)
def test_projectors_that_read_something_else_than_the_patches_of_a_layer(changes, message):
    model, processor = tiny_llava(**changes), tiny_processor()
    with pytest.raises(ModelError, match=message), tp.prune(model, processor, InTower(1), keep_tokens=KEEP):
        pass


def choosing(**more):
    """Keeps the first K patches, and says something else that a stage in the tower cannot do."""

    def select(tokens, k):
        keep = torch.arange(k).expand(tokens.batch_size, -1)
        values = {name: make(tokens, keep) for name, make in more.items()}
        return tp.TokenSelection(values.pop("keep", keep), tokens.num_tokens, **values)

    return InTower(1, select=select)


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        (
            choosing(heads=lambda tokens, keep: (torch.arange(tokens.num_tokens) < KEEP).expand(len(keep), 4, -1)),
            "heads can keep different tokens in a cache only",
        ),
        (choosing(sequence=lambda tokens, keep: keep.flip(1)), r"tower\(1\): patches can be put in another order"),
        (
            choosing(keep=lambda tokens, keep: torch.cat([keep[:, :-1], torch.tensor([[6], [-1], [6]])], 1)),
            r"tower\(1\): all pictures of a batch must keep equal numbers of patches",
        ),
        (
            choosing(merged=lambda tokens, keep: tokens.features[:, : KEEP + 1]),
            "tokens can be appended inside the LLM only",
        ),
    ],
)
def test_selections_that_a_tower_cannot_do(pruner, message):
    model, processor = MLLMS["llava"].build("sdpa")
    session, inputs = session_for(model, processor), MLLMS["llava"].ask(processor, 1, 2)
    with pytest.raises(ModelError, match=message):
        session.prune_inputs(inputs, pruner, tp.Budget(keep_tokens=KEEP))


def test_a_stage_keeps_a_patch():
    class All(InTower):
        def counts(self, spec, keep, total):
            return (keep, 0)

    model, processor = MLLMS["llava"].build("sdpa")
    session, inputs = session_for(model, processor), MLLMS["llava"].ask(processor, 1)
    with pytest.raises(ModelError, match=r"tower\(2\): at least one patch must stay"):
        session.prune_inputs(inputs, All(1, 2), tp.Budget(keep_tokens=KEEP))


@torch.no_grad()
def test_a_tower_that_is_compiled():
    """As a whole it is refused, as its layers run without hooks; layers that are compiled one by one are not."""
    model, processor = MLLMS["llava"].make("sdpa")
    session, inputs = session_for(model, processor), MLLMS["llava"].ask(processor, 1)
    budget, layers = tp.Budget(keep_tokens=KEEP), model.base_model.vision_tower.encoder.layers
    right = session.prune_inputs(inputs, InTower(1), budget)
    for layer in layers:
        layer.compile(backend="eager")
    again = session.prune_inputs(inputs, InTower(1), budget)
    assert torch.equal(again.selection.keep, right.selection.keep)
    for layer in layers:
        layer._compiled_call_impl = None
    tower = model.base_model.vision_tower
    tower.forward = lambda *args, **kwargs: type(tower).forward(clone, *args, **kwargs)
    clone = MLLMS["llava"].build("sdpa")[0].base_model.vision_tower
    with pytest.raises(ModelError, match="did not run one by one"):
        session.prune_inputs(inputs, InTower(1), budget)


def test_what_was_encoded_before_is_encoded_again_for_a_stage_in_the_tower():
    model, processor = MLLMS["llava"].build("sdpa")
    session, inputs = session_for(model, processor), MLLMS["llava"].ask(processor, 1)
    encoded, budget, pruner = session.encode(inputs), tp.Budget(keep_tokens=KEEP), InTower(1, after=(decoder(2),))
    once = session.prune_inputs(inputs, pruner, budget)
    again = session.prune_inputs(inputs, pruner, budget, encoded=encoded)
    assert torch.equal(once.kept, again.kept)
    assert again.seconds["vision"] > 0
    assert torch.equal(session.prefill(once).output.logits, session.prefill(again).output.logits)
