"""Qwen2-VL and Qwen2.5-VL, and what Qwen3-VL has in common with them: positions with three axes, videos, frames."""

import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.adapters.mrope import close_gaps
from tokenprune.adapters.qwen_vl import QwenVLAdapter
from tokenprune.adapters.registry import adapter_class
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.signals import TowerAttention, TowerKeys, TowerStates
from tokenprune.core.sizes import TransformerSpec
from tokenprune.costs.flops import projector_flops, vision_flops
from tokenprune.costs.model_card import load_card
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.providers.encoding import Encoding
from tokenprune.engine.session import Session
from tokenprune.testing.checks import check_identity, check_masking, generated
from tokenprune.testing.families import families
from tokenprune.testing.families.qwen_vl import FRAMES, MERGE, PATCH, pixels, tiny_processor, tiny_qwen
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.testing.pruners import Project, Within
from tokenprune.towers.base import TowerOutput

FAMILIES = families("qwen_vl") | families("qwen3_vl")
TOWER = frozenset({TowerKeys(), TowerStates()})
VIDEOS = {"images only": {}, "a video": {"videos": (1, 0)}, "videos and images": {"videos": (1, 2)}}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(params=["sdpa", "eager"])
def built(request, family):
    return family.build(request.param)


@pytest.fixture
def plain(family):
    return family.build("sdpa")


# Sizes


def text_config(**changes):
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    return {**sizes, "num_key_value_heads": 4, "vocab_size": 152064, "rope_parameters": rope, **changes}


def test_the_spec_of_qwen2_5_vl_7b_is_its_card():
    config = Qwen2_5_VLConfig(text_config=text_config(), vision_config={"hidden_size": 1280, "out_hidden_size": 3584})
    assert QwenVLAdapter.spec_from_config(config) == load_card("qwen2.5-vl-7b").spec


def test_the_spec_of_qwen2_vl_7b():
    spec = QwenVLAdapter.spec_from_config(Qwen2VLConfig(text_config=text_config()))
    assert spec.llm == load_card("qwen2.5-vl-7b").spec.llm
    assert spec.vision == TransformerSpec(32, 1280, 5120, 16, 16, 80, 2)
    assert (spec.visual_tokens, spec.vision_tokens, spec.vision_window) == (1296, 5184, 0)
    assert spec.projector == (5120, 5120, 3584)


@pytest.mark.parametrize("name", FAMILIES)
def test_flops_of_the_tower_are_those_that_the_counter_counts(name):
    """Of an image of 8 x 8 tokens; with eager attention, as the counter has no formula for SDPA on a CPU."""
    model, _ = FAMILIES[name].make("eager")
    spec = replace(adapter_class(name).spec_from_config(model.config), visual_tokens=64, vision_tokens=64 * MERGE**2)
    grid = torch.tensor([[1, 8 * MERGE, 8 * MERGE]])
    patches = torch.zeros(spec.vision_tokens, spec.patch_inputs)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.base_model.get_image_features(patches, grid)
    assert counter.get_total_flops() == vision_flops(spec) + projector_flops(spec)


# Positions


@pytest.mark.parametrize("videos", VIDEOS.values(), ids=VIDEOS)
def test_positions_are_those_that_generate_makes(family, plain, videos):
    model, processor = plain
    inputs = family.ask(processor, 2, 1, **videos)
    adapter = adapter_for(model, processor)
    model.base_model.rope_deltas = marker = torch.tensor([[7]])
    ours = adapter.positions(inputs)
    assert model.base_model.rope_deltas is marker
    theirs = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    real = inputs["attention_mask"].bool()
    assert ours.shape == theirs.shape == (4, *real.shape)
    assert torch.equal(ours[:, real], theirs[:, real])
    number_of = family.row_positions(model, inputs)  # by hand
    for row, mask in enumerate(real):
        assert torch.equal(ours[1:, row, mask], number_of(row, int(mask.sum()))[:, 0])


def test_an_image_without_its_last_column_is_numbered_as_the_smaller_image():
    """2 x 3 tokens after two words, and two words after them."""
    axes = [[0, 1, 2, 2, 2, 2, 2, 2, 5, 6], [0, 1, 2, 2, 2, 3, 3, 3, 5, 6], [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]]
    positions = torch.tensor([list(range(10)), *axes])[:, None]
    visual = torch.tensor([[False] * 2 + [True] * 6 + [False] * 2])
    gone = torch.zeros_like(visual)
    gone[0, [4, 7]] = True
    closed = close_gaps(positions, visual, gone)[:, 0, ~gone[0]]
    assert closed[0].tolist() == list(range(8))
    assert closed[1].tolist() == [0, 1, 2, 2, 2, 2, 4, 5]
    assert closed[2].tolist() == [0, 1, 2, 2, 3, 3, 4, 5]
    assert closed[3].tolist() == [0, 1, 2, 3, 2, 3, 4, 5]
    assert torch.equal(close_gaps(positions, visual, torch.zeros_like(gone)), positions)
    whole = close_gaps(positions, visual, visual)[:, 0, ~visual[0]]
    assert whole.tolist() == [[0, 1, 2, 3]] * 4


# Inside the LLM


def test_dropping_by_the_attention_of_the_layer_itself(family, built):
    """Which is computed with the positions of all axes."""
    inputs = family.ask(built[1], 1, 2)
    trace = check_masking(family, *built, inputs, Within(layers=(1, 2, 3), own=True), keep_tokens=6)
    assert trace.counts == family.counts(built[0], inputs, 6)


def test_keeping_everything_inside(family, built):
    check_identity(*built, family.ask(built[1], 1, 2), Within(layers=(1, 3)))


def test_gaps_cannot_be_closed_inside(family, plain):
    model, processor = plain
    kind = adapter_class(model.config.model_type)
    pruner = Within(positions="repacked")
    with pytest.raises(ModelError, match=r"several axes.* \(layer=2\); give the pruner positions: original"):
        kind.check_steps(pruner.steps(kind.spec_from_config(model.config)))  # before weights are loaded
    with (
        pytest.raises(ModelError, match="several axes"),
        tp.prune(model, processor, pruner, keep_tokens=6),
    ):
        pass


@pytest.mark.parametrize("name", ["pyramiddrop", "sparsevlm"])
def test_methods_that_close_gaps_by_default_run_with_original_positions(family, built, name):
    options = {"pyramiddrop": {}, "sparsevlm": {"version": "v1", "recycle": False}}[name]
    pruner = tp.create_pruner(name, positions="original", **options)
    check_masking(family, *built, family.ask(built[1], 1, 2), pruner, keep_tokens=6)


# Videos


@pytest.mark.parametrize("scope", ["frame", "video"])
@pytest.mark.parametrize("positions", ["original", "repacked"])
@pytest.mark.parametrize("rows", [(0,), (1, 0), (1, 2)], ids=str)
def test_dropping_from_videos_is_masking(family, built, rows, positions, scope):
    inputs = family.ask(built[1], *rows, videos=(1, 2)[: len(rows)])
    trace = check_masking(family, *built, inputs, Project(positions=positions), scope, keep_tokens=12)
    assert [after for _, after in trace.counts] == [12 * (images + row + 1) for row, images in enumerate(rows)]


@pytest.mark.parametrize("pruner", [Project(), Project(positions="original"), Within()], ids=["", "original", "inside"])
def test_keeping_whole_videos(family, built, pruner):
    check_identity(*built, family.ask(built[1], 1, 0, videos=(1, 1)), pruner)


def test_dropping_from_videos_inside_is_masking(family, built):
    inputs = family.ask(built[1], 1, 0, videos=(1, 1))
    check_masking(family, *built, inputs, Within(layers=(1, 3)), keep_tokens=12)


def test_rows_of_a_video(family, plain):
    model, processor = plain
    inputs = family.ask(processor, 1, 0, videos=(1, 1))
    frames, video = (session_for(model, processor, scope=scope).encode(inputs).layout for scope in ("frame", "video"))
    assert frames.item_rows == video.item_rows == (0, 0, 1)
    assert frames.items == (0, 1, 1, 1, 2, 2)  # six pictures of a video are three frames, four are two
    assert frames.grids == ((5, 5), *[(5, 5)] * 3, *[(3, 6)] * 2)
    assert [len(unit) for unit in frames.units] == [25, 25, 25, 25, 18, 18]
    assert video.items == (0, 1, 2)
    assert video.grids == ((5, 5), None, None)
    assert [len(unit) for unit in video.units] == [25, FRAMES // 2 * 25, 36]


def test_a_budget_is_of_the_whole_video(family, plain):
    model, processor = plain
    inputs = family.ask(processor, 0, videos=(1,))
    kept = {}
    for scope in ("frame", "video"):
        with tp.prune(model, processor, Project(), keep_tokens=15, scope=scope) as trace:
            model.generate(**inputs, max_new_tokens=1)
        number = torch.tensor(trace.stages[0].keep[0])
        kept[scope] = torch.bincount(number // 25, minlength=3).tolist()
    assert kept["frame"] == [5, 5, 5]
    assert sum(kept["video"]) == 15
    assert kept["video"] != [5, 5, 5]


@pytest.mark.parametrize("pruner", [Project(), Within()], ids=["before", "inside"])
def test_a_budget_is_of_each_frame_if_the_scope_says_so(family, built, pruner):
    inputs = family.ask(built[1], 1, 0, videos=(1, 1))  # an image of 25 tokens, three frames of 25, two of 18
    check_identity(*built, inputs, pruner, "per_frame")
    trace = check_masking(family, *built, inputs, pruner, "per_frame", keep_tokens=5)
    assert trace.counts == [(100, 20), (36, 10)]
    if pruner == Project():
        assert [number // 25 for number in trace.stages[0].keep[0]] == sorted([0, 1, 2, 3] * 5)


def test_a_budget_may_be_of_larger_images_than_the_nominal_one(family, plain):
    """Of 36 x 36 tokens: one of 38 x 36 keeps 1300 tokens, and a smaller one all of its 25."""
    model, processor = plain
    inputs = family.ask(processor, 1, 1, sizes=((304, 288), (40, 40)))
    with tp.prune(model, processor, Project(), keep_tokens=1300) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert trace.counts == [(38 * 36, 1300), (25, 25)]


def test_a_video_alone_is_the_video_in_a_batch(family, plain):
    model, processor = plain
    batch, alone = (family.ask(processor, 1, 1, videos=(1, 1), only=only) for only in (None, 1))
    with tp.prune(model, processor, Project(), keep_tokens=12) as trace:
        tokens, logits = generated(model, batch)
        together = trace.stages[0].keep[1]
        single, single_logits = generated(model, alone)
    assert trace.stages[0].keep == [together]
    assert single.tolist() == tokens[1:].tolist()
    torch.testing.assert_close(single_logits, logits[1:], atol=5e-5, rtol=0)
    layouts = [session_for(model, processor).encode(inputs).layout for inputs in (batch, alone)]
    assert layouts[1].ids.tolist() == layouts[0].ids[layouts[0].rows == 1].tolist()


def test_there_is_no_such_scope(plain):
    with pytest.raises(ModelError, match=r"scope 'tile' is not one of Qwen.*frame, video"):
        adapter_for(*plain, scope="tile")


# Signals


@torch.no_grad()
@pytest.mark.parametrize("videos", [{}, {"videos": (1, 1)}], ids=["images", "video"])
def test_signals_are_those_of_the_last_layer(family, plain, videos):
    """Means over the patches of a token, whose order in the tower is worked out by hand."""
    model, processor = plain
    inputs = family.ask(processor, 1, 2, **videos)
    tower, seen = model.base_model.visual, []
    hooks = [
        tower.blocks[-1].attn.qkv.register_forward_hook(lambda m, args, out: seen.append(out)),
        tower.blocks[-1].register_forward_hook(lambda m, args, out: seen.append(out)),
    ]
    encoded = session_for(model, processor).encode(inputs, TOWER)
    for hook in hooks:
        hook.remove()
    adapter, number = adapter_for(model, processor), 0
    for modality, output in encoded.outputs.items():
        came = TowerOutput(model, modality, output, inputs)
        signals = {each: adapter.per_token(modality, adapter.tower.signal(each, came), inputs) for each in TOWER}
        qkv, hidden = seen[number : number + 2]
        number += 2
        order = tower_order(model, inputs[f"{modality}_grid_thw"].tolist())
        for signal, x in {TowerKeys(): qkv[:, 32:64], TowerStates(): hidden}.items():
            wanted = x.view(-1, MERGE**2, 32).mean(1)[order]
            torch.testing.assert_close(signals[signal], wanted)
        merged = model.base_model.visual.merger(output.last_hidden_state)[order]
        torch.testing.assert_close(merged, torch.cat(list(output.pooler_output)))
    assert Session(adapter).visual_tokens(inputs, TOWER).signals.keys() == set(map(str, TOWER))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("videos", [{}, {"videos": (1, 1)}], ids=["images", "videos"])
@pytest.mark.parametrize(("name", "full"), [*((name, None) for name in FAMILIES), ("qwen2_5_vl", [1])])
def test_received_attention_is_the_mean_of_the_tower_s_own_softmax(name, full, monkeypatch, videos, attention):
    """Of the last layer without windows, within an image or frame, after rotation."""
    family = FAMILIES[name]
    vision = {**family.vision, "depth": 3, "fullatt_block_indexes": full} if full else family.vision
    models = {kind: tiny_qwen(family.kind, kind, vision, **family.text) for kind in ("eager", attention)}
    processor, model = tiny_processor(family.kind), models[attention]
    inputs = family.ask(processor, 1, 2, **videos)
    tower = models["eager"].base_model.visual
    module, seen = tower.blocks[full[0] if full else -1].attn, []
    modeling = sys.modules[type(module).__module__]
    eager = modeling.eager_attention_forward

    def recording(asking, *arguments, **options):
        output, weights = eager(asking, *arguments, **options)
        if asking is module:
            seen.append(weights[0].mean(1).T)  # (P, H) of one picture
        return output, weights

    monkeypatch.setattr(modeling, "eager_attention_forward", recording)
    models["eager"](**inputs)
    requires, pictures = frozenset({TowerAttention("patches")}), iter([*seen])
    adapter = adapter_for(model, processor)
    encoded = Session(adapter).encode(inputs, requires)
    for modality, output in encoded.outputs.items():
        grids = inputs[f"{modality}_grid_thw"].tolist()
        patches = torch.cat([next(pictures) for count, _, _ in grids for _ in range(count)])
        wanted = patches.view(-1, MERGE**2, patches.shape[1]).mean(1)[tower_order(model, grids)]
        patches = adapter.tower.signal(*requires, TowerOutput(model, modality, output, inputs))
        found = adapter.per_token(modality, patches, inputs)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    assert next(pictures, None) is None
    assert Session(adapter).visual_tokens(inputs, requires).signals["received_attention"].shape[1] == 4


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_received_attention_of_a_layer_with_windows_is_of_its_windows(monkeypatch, attention):
    """A named layer gives what it computes: the softmax of each window by itself."""
    family = FAMILIES["qwen2_5_vl"]
    models = {kind: tiny_qwen(family.kind, kind, family.vision, **family.text) for kind in ("eager", attention)}
    processor, model = tiny_processor(family.kind), models[attention]
    inputs, seen = family.ask(processor, 1, 2), []
    module = models["eager"].base_model.visual.blocks[0].attn
    modeling = sys.modules[type(module).__module__]
    eager = modeling.eager_attention_forward

    def recording(asking, *arguments, **options):
        output, weights = eager(asking, *arguments, **options)
        if asking is module:
            seen.append(weights[0].mean(1).T)  # (P, H) of one window
        return output, weights

    monkeypatch.setattr(modeling, "eager_attention_forward", recording)
    models["eager"](**inputs)
    grids = inputs["image_grid_thw"].tolist()
    assert len(seen) > len(grids)
    patches = torch.cat(seen)
    wanted = patches.view(-1, MERGE**2, patches.shape[1]).mean(1)[tower_order(model, grids)]
    signal = TowerAttention("patches", layer=0)
    session = Session(adapter_for(model, processor))
    encoded = session.encode(inputs, frozenset({signal}))
    found = Encoding(session.adapter, inputs, encoded).signal(signal)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_a_tower_of_windows_alone_has_no_received_attention():
    model = tiny_qwen("Qwen2_5_VL", "sdpa", {**FAMILIES["qwen2_5_vl"].vision, "fullatt_block_indexes": []})
    processor = tiny_processor("Qwen2_5_VL")
    inputs = FAMILIES["qwen2_5_vl"].ask(processor, 1)
    with pytest.raises(ModelError, match="attend within windows, so received_attention is not known"):
        session_for(model, processor).visual_tokens(inputs, frozenset({TowerAttention("patches")}))


def tower_order(model, grids):
    """Where the tower has the patches of each token: Qwen2.5-VL's goes window by window."""
    window = getattr(model.config.vision_config, "window_size", None)
    if window is None:
        return list(range(sum(t * h * w // MERGE**2 for t, h, w in grids)))
    side, place, order = window // PATCH // MERGE, 0, {}
    for image, (frames, height, width) in enumerate(grids):
        height, width = height // MERGE, width // MERGE
        for frame in range(frames):
            for top in range(0, height, side):
                for left in range(0, width, side):
                    for y in range(top, min(top + side, height)):
                        for x in range(left, min(left + side, width)):
                            order[image, frame, y, x] = place
                            place += 1
    return [order[key] for key in sorted(order)]


# Ways to generate


@pytest.mark.parametrize("pruner", [Project(), Project(positions="original"), Within()], ids=["", "original", "inside"])
@pytest.mark.parametrize("how", [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_other_ways_to_generate(family, plain, how, pruner):
    model, processor = plain
    inputs = family.ask(processor, 1)
    with tp.prune(model, processor, pruner, keep_tokens=7):
        expected = model.generate(**inputs, max_new_tokens=12)
        assert torch.equal(model.generate(**inputs, max_new_tokens=12, **how), expected)


@pytest.mark.parametrize("pruner", [Project(), Within()], ids=["before", "inside"])
@pytest.mark.parametrize("videos", [{}, {"videos": (1, 0)}], ids=["images", "video"])
def test_beam_search(family, plain, pruner, videos):
    """Each beam's score is that of the masked reference, summed over its tokens."""
    model, processor = plain
    inputs = family.ask(processor, 2, 1, **videos)
    how = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 6, "output_scores": True, "length_penalty": 0.0}
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        out = model.generate(**inputs, **how, return_dict_in_generate=True)
    for beam in range(2):
        tokens = out.sequences[beam::2, inputs["input_ids"].shape[1] :]
        logits = masked_layers_logits(model, inputs, trace.stages, [pruner.positions], tokens, family=family)
        scores = logits.log_softmax(-1).gather(2, tokens[..., None]).sum((1, 2))
        torch.testing.assert_close(out.sequences_scores[beam::2], scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pruner", [Project(), Project(positions="original"), Within()], ids=["", "original", "inside"])
@pytest.mark.parametrize("pixels", [True, False])
def test_second_turn(family, plain, pruner, pixels):
    model, processor = plain
    inputs, details = family.ask(processor, 1, 2), {"return_dict_in_generate": True, "output_logits": True}
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        first = model.generate(**inputs, max_new_tokens=5, **details)
        second = extended(inputs, first.sequences, "USER: is there a star ? ASSISTANT:", processor)
        given = second if pixels else {k: v for k, v in second.items() if not k.startswith(("pixel", "image"))}
        out = model.generate(**given, **{CACHE: cache_of(first)}, max_new_tokens=8, **details)
    tokens = out.sequences[:, second["input_ids"].shape[1] :]
    wanted = masked_layers_logits(model, second, trace.stages, [pruner.positions], tokens, family=family)
    torch.testing.assert_close(torch.stack(out.logits, 1), wanted, atol=1e-4, rtol=0)
    assert len(trace.calls) == 1


@pytest.mark.parametrize("pruner", [Project(positions="original"), Within()], ids=["before", "inside"])
@pytest.mark.parametrize("given", [{}, {"videos": (1, 1), "fps": 0.25}], ids=["images", "slow videos"])
def test_a_conversation_that_keeps_everything(family, plain, pruner, given):
    """A later turn counts as in the unpruned model, also where a video's last frame is ahead of the text in time."""
    model, processor = plain
    inputs, details = family.ask(processor, 1, 2, **given), {"return_dict_in_generate": True, "output_logits": True}

    def conversation():
        first = model.generate(**inputs, max_new_tokens=5, **details)
        second = extended(inputs, first.sequences, "USER: is there a star ? ASSISTANT:", processor)
        second = {name: value for name, value in second.items() if "pixel" not in name and "grid" not in name}
        return model.generate(**second, **{CACHE: cache_of(first)}, max_new_tokens=8, **details)

    unpruned = conversation()
    with tp.prune(model, processor, pruner, keep_ratio=1.0):
        pruned = conversation()
    assert torch.equal(pruned.sequences, unpruned.sequences)
    torch.testing.assert_close(torch.stack(pruned.logits), torch.stack(unpruned.logits), atol=1e-5, rtol=0)


def extended(inputs, sequences, text, processor):
    """The inputs of the whole conversation with one more question."""
    new = processor.tokenizer([text] * len(sequences), add_special_tokens=False, return_tensors="pt").input_ids
    ids = torch.cat([sequences, new], 1)
    more = ids.shape[1] - inputs["input_ids"].shape[1]
    mask, kinds = (torch.nn.functional.pad(inputs[name], (0, more), value=value) for name, value in PADDED.items())
    return {**inputs, "input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds}


PADDED = {"attention_mask": 1, "mm_token_type_ids": 0}


def test_a_later_turn_brings_no_images(family, plain):
    model, processor = plain
    inputs = family.ask(processor, 1)
    with tp.prune(model, processor, Project(), keep_tokens=7):
        first = model.generate(**inputs, max_new_tokens=5, return_dict_in_generate=True)
        again = {**family.ask(processor, 1, seed=9), CACHE: cache_of(first)}
        again["input_ids"] = torch.cat([first.sequences, again["input_ids"]], 1)
        again = {name: value for name, value in again.items() if name not in PADDED}
        with pytest.raises(ModelError, match="cannot bring images whose number of tokens varies"):
            model.generate(**again)


# Inputs


def test_a_processor_without_a_template(family, plain):
    model, processor = plain
    samples = [Sample.of(Image.fromarray(pixels(0, 40, 40)), "is there a star ?", "yes", id="0")]
    bare = tiny_processor(family.kind)
    bare.chat_template = None
    prepared, again = (session_for(model, each).prepare(samples) for each in (processor, bare))
    assert torch.equal(again.inputs["input_ids"], prepared.inputs["input_ids"])


MISTAKES = {
    "no grid": (lambda x: x.pop("image_grid_thw"), "image_grid_thw must be given, too"),
    "no types": (lambda x: x.pop("mm_token_type_ids"), "mm_token_type_ids must be given, too"),
    "no pixels": (lambda x: x.pop("pixel_values"), "has image placeholders, and no image is given"),
    "other patches": (
        lambda x: x.update(pixel_values=x["pixel_values"][:-4]),
        "image_grid_thw tells of 172 patches, but 168 are given",
    ),
    "other images": (
        lambda x: x.update(pixel_values=x["pixel_values"][:100], image_grid_thw=x["image_grid_thw"][:1]),
        r"the prompts hold \[43\] image placeholders",
    ),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(family, plain, change, message):
    model, processor = plain
    inputs = family.ask(processor, 2)
    change(inputs)
    with pytest.raises(ModelError, match=message), tp.prune(model, processor, Project(), keep_tokens=5):
        model.generate(**inputs)


@pytest.mark.parametrize("axes", [3, 4])
def test_given_position_ids_of_three_and_four_axes_are_closed_alike(axes):
    """The model's own numbers, given as ``get_rope_index`` or ``generate`` has them, change nothing."""
    family = families()["qwen2_5_vl"]
    model, processor = family.build("sdpa")
    inputs = family.ask(processor, 1, 2)
    given = adapter_for(model, processor).positions(inputs)[-axes:]
    with torch.no_grad(), tp.prune(model, processor, Project(positions="repacked"), keep_tokens=4):
        plain = model(**inputs).logits
        assert torch.equal(model(**inputs, position_ids=given).logits, plain)
