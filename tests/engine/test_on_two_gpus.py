"""Models over two GPUs, which are simulated: pruning gives the tokens that it gives on the CPU."""

import copy
import functools
import itertools

import pytest
import torch
from simcuda import Simulated
from tiny_towers import InTower
from two_gpus import dispatched, halved, on_cpu, on_gpus, spread

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.core.budget import Budget
from tokenprune.core.sample import Sample
from tokenprune.core.signals import TowerAttention, TowerKeys, TowerStates
from tokenprune.core.stages import decoder
from tokenprune.engine.decoder.prefill import Prefill
from tokenprune.engine.decoder.replay import Replay
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.prompt.pruned import prompt_tokens
from tokenprune.engine.session import Session
from tokenprune.pruners.base import create_pruner
from tokenprune.pruners.none import NoPruning
from tokenprune.testing.families import families
from tokenprune.testing.pictures import picture
from tokenprune.testing.pruners import depthwise

FAMILIES = {"llava": "llava", "padded llava": "llava", "qwen2.5-vl": "qwen2_5_vl"}
DETAILS = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}
ORIGINAL = {"positions": "original"}
INSIDE = {
    "fastv": ("fastv", {"layer": 2}, {}),
    "dart": ("dart", {"layer": 2}, {}),
    "random": ("random", {"layer": 1}, ORIGINAL),
    "pyramiddrop": ("pyramiddrop", {}, ORIGINAL),
    "sparsevlm": ("sparsevlm", {}, {**ORIGINAL, "recycle": False}),
    "sparsevlm+": ("sparsevlm", {"version": "plus", "heads": 2}, {}),
    "dop remove": ("dop", {"base": "divprune", "attention_depth": 3, "mlp_depth": 2}, {}),
    "dop update_only": (
        "dop",
        {"base": "random", "attention_depth": 1, "mlp_depth": 2, "attention": "update_only"},
        {},
    ),
    "cdpruner, fastv": ([{"name": "cdpruner", "conditioning": "none"}, {"name": "fastv", "layer": 2}], {}, {}),
}
BEFORE = {
    "cdpruner": ("cdpruner", {"conditioning": "prompt_embedding"}, {}),
    "divprune": ("divprune", {}, {}),
    "pooling": ("pooling", {}, {}),
}
SEEN = (TowerKeys(0), TowerAttention("cls"), TowerStates())
ELSEWHERE = {
    "in the tower": (InTower(1, 2, after=(decoder(2),), requires=SEEN), {}, {}),
    "received attention": ("cdpruner", {"conditioning": "received_attention"}, {}),
    "resize": ("resize", {}, {}),
}


GENERATIONS = {
    "plain": {},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "beams": {"num_beams": 2},
    "no cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "hidden states": {"output_hidden_states": True},
}


@functools.cache
def build(family, attention="sdpa"):
    return families()[FAMILIES.get(family, family)].build(attention)


@functools.cache
def over_two(family, split, attention="sdpa", **elsewhere):
    model = copy.deepcopy(build(family, attention)[0])
    return dispatched(model, spread(model, split, **elsewhere))


def prompt(family):
    images = (1, 2) if family.startswith("padded") else (1,)
    return families()[FAMILIES.get(family, family)].ask(build(family)[1], *images)


def answer(model, family, method, inputs, **generation):
    """Tokens, their logits and what stayed."""
    pruner, options, for_qwen = {**INSIDE, **BEFORE, **ELSEWHERE}[method]
    options = {**options, **(for_qwen if family.startswith("qwen") else {})}
    with tp.prune(model, build(family)[1], pruner, keep_tokens=6, **options) as trace:
        out = model.generate(**inputs, **{**DETAILS, **generation})
    return on_cpu(out.sequences), torch.stack([on_cpu(x) for x in out.logits]), [stage.keep for stage in trace.stages]


@functools.cache
def wanted(family, method, attention, way):
    with torch.no_grad():
        return answer(build(family, attention)[0], family, method, prompt(family), **GENERATIONS[way])


def check(model, family, method, *, attention="sdpa", way="plain", device="cuda:0"):
    """On the simulated machine a method keeps, and says, what it does on the CPU."""
    tokens, logits, kept = wanted(family, method, attention, way)
    with on_gpus(prompt(family), device) as inputs:
        found = answer(model, family, method, inputs, **GENERATIONS[way])
    assert found[0].tolist() == tokens.tolist()
    assert found[2] == kept
    torch.testing.assert_close(found[1], logits, atol=1e-4, rtol=0)


def test_the_map_is_that_of_accelerate():
    """What comes after the layers is on the last GPU, and so is what gives them their position embeddings."""
    model = over_two("llava", 2)
    assert str(next(model.get_decoder().layers[1].parameters()).device) == "cuda:0"
    last = [model.get_decoder().norm.weight, model.get_decoder().rotary_emb.inv_freq, model.lm_head.weight]
    assert {str(x.device) for x in last} == {"cuda:1"}
    assert all(isinstance(x, Simulated) for x in model.parameters())


SPARE = {(family, split) for family in FAMILIES for split in (1, 2, 3)} - {
    *(("padded llava", split) for split in (1, 2, 3)),
    ("qwen2.5-vl", 2),
}
SPLITS = [  # before which layer the second GPU begins
    pytest.param(family, split, marks=pytest.mark.full if (family, split) in SPARE else ())
    for family in FAMILIES
    for split in (1, 2, 3)
]


@pytest.mark.parametrize("method", INSIDE)
@pytest.mark.parametrize(("family", "split"), SPLITS)
def test_inside_the_llm(family, split, method):
    check(over_two(family, split), family, method)


@pytest.mark.parametrize("method", BEFORE)
@pytest.mark.parametrize("family", FAMILIES)
def test_before_the_llm(family, method):
    check(over_two(family, 2), family, method)


@pytest.mark.parametrize("method", ["pyramiddrop", "sparsevlm", "dop remove"])
@pytest.mark.parametrize("way", [way for way in GENERATIONS if way != "plain"])
def test_ways_to_generate(way, method):
    family = "llava" if way == "prompt lookup" else "padded llava"
    check(over_two(family, 2), family, method, way=way)


@pytest.mark.parametrize("method", INSIDE)
def test_additive_masks(method):
    check(over_two("padded llava", 2, "eager"), "padded llava", method, attention="eager")


@pytest.mark.parametrize("method", ["cdpruner", "fastv", "pyramiddrop"])
def test_inputs_on_the_cpu(method):
    """As accelerate allows: it moves what the model is given."""
    check(over_two("llava", 2), "llava", method, device="cpu")


@pytest.mark.parametrize("method", ["fastv", "sparsevlm", "dop remove"])
@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "mistral3"])
def test_added_features_and_several_rotations(family, method):
    """DeepStack's levels, and position embeddings that differ by layer, come from other devices, too."""
    name = next(name for name in families() if name.startswith(family))
    check(over_two(name, 2), name, method)


@pytest.mark.parametrize("method", ["pyramiddrop", "dop remove", "cdpruner"])
def test_later_turns(method):
    """A padded question more, on a cache whose layers are on two GPUs."""
    (plain, processor), inputs = build("llava"), prompt("padded llava")
    (pruner, options, _), gpus = {**INSIDE, **BEFORE}[method], over_two("llava", 2)

    def turns(model, inputs, more):
        how = DETAILS
        with tp.prune(model, processor, pruner, keep_tokens=6, **options):
            first = model.generate(**inputs, **how)
            ids = torch.cat([first.sequences, more], 1)
            mask = torch.ones_like(ids)
            mask[:, : inputs["input_ids"].shape[1]] = inputs["attention_mask"]
            mask[1, -more.shape[1]] = 0
            return model.generate(input_ids=ids, attention_mask=mask, **{CACHE: cache_of(first)}, **how)

    more = torch.tensor([processor.tokenizer("USER: is there a star ? ASSISTANT:").input_ids[1:]] * 2)
    with torch.no_grad():
        both = turns(plain, inputs, more)
    with on_gpus(inputs) as moved:
        found = turns(gpus, moved, more.to("cuda:0"))
    assert found.sequences.tolist() == both.sequences.tolist()
    torch.testing.assert_close(on_cpu(found.logits[-1]), both.logits[-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["pyramiddrop", "dop update_only", "divprune"])
def test_a_forward(method):
    """All hidden states and logits; the prompt goes through the LLM once, without a cache."""
    (plain, processor), inputs = build("llava"), prompt("padded llava")
    pruner, options, _ = {**INSIDE, **BEFORE}[method]
    with torch.no_grad(), tp.prune(plain, processor, pruner, keep_tokens=6, **options):
        whole = plain(**inputs, output_hidden_states=True, use_cache=False)
    gpus = over_two("llava", 2)
    with on_gpus(inputs) as moved, tp.prune(gpus, processor, pruner, keep_tokens=6, **options):
        found = gpus(**moved, output_hidden_states=True, use_cache=False)
    torch.testing.assert_close(on_cpu(found.logits), whole.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(on_cpu(found.hidden_states[-1]), whole.hidden_states[-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("split", [1, 3])
def test_layers_run_again(split):
    """Plans are tried by running layers by themselves; logits are compared where the model gives its own."""
    plan, found = depthwise(3, 2, 1), []
    for model, device in ((build("llava")[0], "cpu"), (over_two("llava", split), "cuda:0")):
        adapter = adapter_for(model, build("llava")[1])
        with on_gpus(prompt("padded llava"), device) as inputs:
            images = Session(adapter).encode(inputs)
            whole = Session(adapter).prune_inputs(inputs, NoPruning(), encoded=images).inputs
            visual, kept = adapter.placeholders(whole["input_ids"]), torch.ones_like(images.layout.free)
            tokens = prompt_tokens((), visual, images.layout, kept, operations=plan)
            replay = Replay(model, whole, tokens, 2)
            found.append(on_cpu(replay.under(plan) - replay.logits))
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


TOWERS = {"llava": "vision_tower", "internvl": "vision_tower", "mistral3": "vision_tower", "qwen3_vl": "visual"}
PROJECTOR = {"multi_modal_projector": "cuda:1"}


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("llava", "resize"),
        *itertools.product([*TOWERS, "qwen2.5-vl"], ["cdpruner", "pooling", "received attention", "dop remove"]),
    ],
)
def test_vision_elsewhere(family, method):
    """The visual tokens are on another GPU than the prompt."""
    check(over_two(family, 2, **{TOWERS.get(family, "visual"): "cuda:1"}, **PROJECTOR), family, method)


@pytest.mark.parametrize("family", [*TOWERS, "qwen2.5-vl"])
def test_a_vision_tower_over_two(family):
    model = copy.deepcopy(build(family)[0])
    model = dispatched(model, halved(model, spread(model, 2), TOWERS.get(family, "visual")))
    check(model, family, "received attention")


@pytest.mark.parametrize("split", [1, 2])
def test_stages_in_a_vision_tower_over_two_gpus(split):
    """Signals of a stage are of layers on the other GPU, and what is left of the patches goes there and back."""
    model = copy.deepcopy(build("padded llava")[0])
    places = halved(model, spread(model, 2), "vision_tower")
    if split == 1:
        layers = {name: place for name, place in places.items() if ".encoder.layers." in name}
        places |= {name: f"cuda:{int(not name.endswith('.0'))}" for name in layers}
    check(dispatched(model, places), "padded llava", "in the tower")


@pytest.mark.parametrize("method", ["cdpruner", "fastv", "sparsevlm", "dop remove"])
def test_embeddings_elsewhere(method):
    """The LLM's embeddings are on another GPU than the prompt and its first layer."""
    check(over_two("padded llava", 2, embed_tokens="cuda:1"), "padded llava", method)


def test_evidence_of_visual_tokens_elsewhere():
    sample = Sample.of(picture(0), "is there a star ?", boxes=((0, 0, 20, 20),))
    pruner, budget = create_pruner("cdpruner", conditioning="oracle"), Budget(keep_tokens=6)
    plain = adapter_for(*build("llava"))
    wanted = Session(plain).prune_inputs(prompt("llava"), pruner, budget, samples=[sample])
    gpus = adapter_for(over_two("llava", 2, vision_tower="cuda:1", **PROJECTOR), build("llava")[1])
    with on_gpus(prompt("llava")) as inputs:
        found = Session(gpus).prune_inputs(inputs, pruner, budget, samples=[sample])
    assert found.kept.tolist() == wanted.kept.tolist()


@pytest.mark.parametrize("family", ["llava", "padded llava"])
def test_what_is_whole_stays_as_it_is(family, monkeypatch):
    """Layers on the second GPU that still see the whole prompt get the model's own masks and position embeddings."""
    seen, enter = [], Prefill.enter

    def entering(self, index, layer, arguments):
        given = enter(self, index, layer, arguments)
        seen.append(all(given[name] is arguments[name] for name in ("attention_mask", "position_embeddings")))
        return given

    monkeypatch.setattr(Prefill, "enter", entering)
    gpus, options = over_two(family, 2), {"base": "random", "mlp_depth": 1, "keep_tokens": 6}
    with on_gpus(prompt(family)) as inputs, tp.prune(gpus, build(family)[1], "dop", **options):
        gpus.generate(**inputs, max_new_tokens=1)
    assert seen[:2] == [True, True]  # of layers 1 and 2
