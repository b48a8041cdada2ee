"""``exact`` FLOPs are those that PyTorch counts: of every family, unpruned and really pruned, part by part.

A model generates from pixels, so that one count holds the vision tower, the projector, a prefill, the LM head, decoding
and, inside a ``with`` block, what selects.
"""

from dataclasses import replace

import pytest
from counted_parts import counted
from tiny_towers import MLLMS, InTower
from transformers import SiglipVisionConfig

import tokenprune as tp
from tokenprune.core.budget import Budget
from tokenprune.core.plan import OperationPlan
from tokenprune.core.stages import decoder
from tokenprune.costs.flops import llm_decode_flops, llm_prefill_flops, lm_head_flops, projector_flops, vision_flops
from tokenprune.costs.memory import kv_cache_bytes_by_layer, planned_kv_bytes_by_layer
from tokenprune.costs.selector import selection_flops
from tokenprune.engine.loading import adapter_for
from tokenprune.sweeps.aggregate import left_of_image
from tokenprune.sweeps.build import Cell
from tokenprune.testing.families import families
from tokenprune.testing.families.gemma3 import Gemma3, tiny_gemma3
from tokenprune.testing.families.llava import Llava, tiny_llava, tiny_processor, tiny_vision_config
from tokenprune.testing.families.mistral3 import Mistral3, tiny_mistral3
from tokenprune.testing.families.paligemma import PaliGemma, tiny_paligemma
from tokenprune.testing.families.qwen_vl import MERGE, PATCH

FAMILIES = families()
KEEP, NEW = 7, 3  # visual tokens of an image; answer tokens, the first of which is the prefill's
SIDE = 8  # visual tokens of an image of any size: height and width
PRUNERS = {
    "before": ("uniform", {}),
    "fastv": ("fastv", {"layer": 1}),
    "pyramiddrop": ("pyramiddrop", {"layers": (1, 2, 3), "positions": "original"}),
    "dop": ("dop", {"base": "uniform", "attention_depth": 3, "mlp_depth": 1}),
    "queries": (
        "dop",
        {"base": {"name": "fastv", "layer": 1}, "attention_depth": 3, "query_depth": 2, "mlp_depth": 1},
    ),
}
EAGER = ("fastv", "queries")


def asked(family, model, processor, images=1):
    """Inputs of a prompt and the sizes of its model, for images that are as large as those say."""
    spec = adapter_for(model, processor).spec
    if "qwen" not in model.config.model_type:
        return family.ask(processor, images, **family.nominal), spec
    side = SIDE * MERGE * PATCH
    smaller = replace(spec, visual_tokens=SIDE**2, vision_tokens=SIDE**2 * MERGE**2)
    return family.ask(processor, images, sizes=((side, side),)), smaller


def check(parts, spec, plan, text, images=1, selection=0):
    """Each part is what the closed form says, to the last FLOP, and nothing else was computed."""
    assert parts.tower == images * vision_flops(spec)
    assert parts.projector == images * projector_flops(spec)
    assert parts.steps[0] == llm_prefill_flops(spec, plan, text) + selection
    assert parts.steps[1:] == [llm_decode_flops(spec, plan, text, step) for step in range(NEW - 1)]
    assert parts.head == NEW * lm_head_flops(spec)
    assert parts.rest() == 0


def unpruned(family, model, processor, images=1):
    """Count, and what the closed form needs: sizes, plan, other tokens, images, cache."""
    inputs, spec = asked(family, model, processor, images)
    with counted(model) as parts:
        out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
    total = images * spec.visual_tokens
    plan = OperationPlan.drop_at(spec, (), (), total)
    return parts, spec, plan, inputs["input_ids"].shape[1] - total, out.past_key_values


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_unpruned(name, attention):
    parts, *said, _ = unpruned(FAMILIES[name], *FAMILIES[name].build(attention))
    check(parts, *said)


@pytest.mark.parametrize(
    ("method", "attention"), [(method, "sdpa") for method in PRUNERS] + [(method, "eager") for method in EAGER]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_pruned(name, attention, method):
    model, processor = FAMILIES[name].build(attention)
    inputs, spec = asked(FAMILIES[name], model, processor)
    (kind, options), total, budget = PRUNERS[method], spec.visual_tokens, Budget(keep_tokens=KEEP)
    pruner = tp.create_pruner(kind, **options)
    with counted(model) as parts, tp.prune(model, processor, pruner, keep_tokens=KEEP) as trace:
        model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    counts, text = pruner.schedule(spec, budget, total), inputs["input_ids"].shape[1] - total
    alive, steps = pruner.alive(spec, counts, total), pruner.steps(spec)
    assert trace.counts == [(total, KEEP)]
    selection = selection_flops(spec, steps, counts, (total, *alive)[: len(steps)], text)
    check(parts, spec, pruner.plan(spec, alive, total), text, selection=selection)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("after", [(), (decoder(2),)], ids=["alone", "and inside the LLM"])
@pytest.mark.parametrize("name", MLLMS)
def test_stages_inside_the_tower(name, after, attention):
    """The later layers of the tower, its head and the projector run on what is left, and so does the LLM."""
    uniform = tp.create_pruner("uniform")
    model, processor = MLLMS[name].build(attention)
    inputs, spec = asked(MLLMS[name], model, processor)
    pruner, budget = InTower(1, 2, after=after, inside=uniform, select=uniform.select), Budget(keep_tokens=KEEP)
    with counted(model) as parts, tp.prune(model, processor, pruner, keep_tokens=KEEP):
        model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    total = spec.visual_tokens
    counts, text = pruner.schedule(spec, budget, total), inputs["input_ids"].shape[1] - total
    left = tuple(zip(pruner.stages(spec), counts, strict=True))
    assert parts.tower == vision_flops(spec, left) < vision_flops(spec)
    assert parts.projector == projector_flops(spec, left) == projector_flops(spec) * counts[1] // total
    assert parts.steps[0] == llm_prefill_flops(spec, pruner.plan(spec, counts, total), text)
    assert parts.rest() == 0
    cell = Cell("in the tower", {}, pruner, budget)
    assert left_of_image(cell, spec, [2 * count for count in counts], 2 * total) == left


@pytest.mark.parametrize("name", [name for name in FAMILIES if "video" not in name or "images" in name])
def test_two_images(name):
    parts, spec, *said, _ = unpruned(FAMILIES[name], *FAMILIES[name].build("sdpa"), images=2)
    if name == "mistral3":  # its tower computes the attention of all images at once, and masks it
        both = replace(spec, vision_tokens=2 * spec.vision_tokens)
        assert parts.tower == vision_flops(both) > 2 * vision_flops(spec)
        parts.total -= vision_flops(both) - 2 * vision_flops(spec)
        parts.tower = 2 * vision_flops(spec)
    check(parts, spec, *said, images=2)


@pytest.mark.parametrize("strategy", ["full", "default"])
@pytest.mark.parametrize("tower", ["clip", "siglip", "siglip with head"])
def test_towers_of_llava(tower, strategy):
    """Whether or not they have a CLS token, the projector reads the first token, and they pool."""
    siglip, processor = tiny_vision_config().to_dict() | {"vision_use_head": "head" in tower}, tiny_processor()
    siglip.pop("model_type")
    config = tiny_vision_config() if tower == "clip" else SiglipVisionConfig(**siglip)
    model = tiny_llava(vision=config, vision_feature_select_strategy=strategy)
    processor.vision_feature_select_strategy = strategy
    processor.num_additional_image_tokens = int(tower == "clip")
    parts, spec, *said, _ = unpruned(Llava(), model, processor)
    assert spec.vision_head == ("head" in tower)
    check(parts, spec, *said)


@pytest.mark.parametrize(
    ("family", "make"),
    [
        (Gemma3(), lambda: tiny_gemma3(window=8)),
        (Mistral3(), lambda: tiny_mistral3(sliding_window=8)),
        (PaliGemma(), lambda: tiny_paligemma("eager", "gemma2", sliding_window=8)),
    ],
    ids=["gemma3", "mistral3", "paligemma 2"],
)
def test_sliding_windows_shorten_the_cache(family, make):
    model, (_, processor) = make(), family.build("sdpa")
    parts, spec, plan, text, cache = unpruned(family, model, processor)
    assert spec.llm.window == 8
    check(parts, spec, plan, text)
    held = kv_cache_bytes_by_layer(cache)
    assert held == planned_kv_bytes_by_layer(spec, plan, text + NEW - 1, 4)
    assert min(held) == 2 * 2 * 7 * spec.llm.kv_heads * spec.llm.head_dim * 2
