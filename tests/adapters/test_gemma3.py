import pytest
import torch
from transformers import Gemma3Config, StaticCache

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.adapters.gemma3 import Gemma3Adapter
from tokenprune.adapters.inputs import CHUNKS_WORK
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import PairedImage, TowerKeys, TowerStates
from tokenprune.costs.flops import projector_flops, vision_flops
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.session import Session
from tokenprune.testing.checks import check_identity, check_masking, check_operations
from tokenprune.testing.families.gemma3 import FAMILIES, TOKENS, tiny_gemma3
from tokenprune.testing.pictures import picture
from tokenprune.testing.pruners import Project, Within, depthwise
from tokenprune.testing.towers import shared_tower

ROWS = (1, 0, 2)
WINDOW = 13  # of the prompts with two images even those that are pruned are longer
FAMILY = FAMILIES["gemma3"]
VISION = frozenset({PairedImage(), TowerKeys(), TowerStates()})


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param


@pytest.fixture
def built():
    return FAMILY.build("sdpa")


def config_4b():
    """gemma-3-4b-it, as its config on the hub says."""
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8}
    return Gemma3Config(
        vision_config={**vision, "image_size": 896, "patch_size": 14},
        text_config={**text, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208},
        mm_tokens_per_image=256,
    )


def test_the_spec_of_the_4b_model():
    spec = Gemma3Adapter.spec_from_config(config_4b())
    assert (spec.visual_tokens, spec.vision_tokens, spec.vision_tiles) == (256, 4096, 1)
    d, n = 1152, 4096  # 27 layers of four projections, an MLP of two matrices and attention; the patch embedding
    head = 4 * n * d**2 + 4 * d**2 + 4 * n * d + 4 * d * 4304  # one query over the patches, which nothing reads
    assert vision_flops(spec) == 27 * n * (8 * d**2 + 4 * d * 4304 + 4 * n * d) + 2 * n * 3 * 14**2 * d + head
    assert projector_flops(spec) == 2 * 256 * 1152 * 2560


def test_images_look_ahead(built):
    """So that the reference of the contract's tests, and the model, do have a mask of their own."""
    model, inputs = built[0], FAMILY.ask(built[1], 1)
    with torch.no_grad():
        logits, causal = model(**inputs).logits, model(**{**inputs, "token_type_ids": None}).logits
    first = int((inputs["token_type_ids"][0] == 1).nonzero()[0])
    assert torch.equal(logits[:, :first], causal[:, :first])
    assert (logits[:, first] - causal[:, first]).abs().max() > 1e-2


@pytest.fixture
def narrow(attention):
    """A model whose windows are shorter than the prompts."""
    return tiny_gemma3(attention, window=WINDOW), FAMILY.build("sdpa")[1]


@pytest.mark.parametrize(
    "pruner",
    [Project(positions="original"), Project(positions="repacked"), Within(), Within(layers=(1, 3))],
    ids=["original", "repacked", "inside", "two"],
)
def test_windows(narrow, pruner):
    """They count the tokens that entered the LLM: what leaves inside it keeps its place."""
    inputs = FAMILY.ask(narrow[1], *ROWS)
    trace = check_masking(FAMILY, *narrow, inputs, pruner, keep_tokens=4)
    left = int(inputs["attention_mask"][2].sum()) - trace.counts[2][0] + trace.counts[2][1]
    assert left > WINDOW


def test_operations_in_windows(narrow):
    check_operations(FAMILY, *narrow, FAMILY.ask(narrow[1], *ROWS), depthwise(4, 3, 2), keep_tokens=4)


def test_keeping_everything_in_windows(narrow):
    for pruner in (Project(), Within()):
        check_identity(*narrow, FAMILY.ask(narrow[1], *ROWS), pruner)


def test_static_caches_with_windows_are_refused_inside_the_llm(built):
    model, inputs = built[0], FAMILY.ask(built[1], 1)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    with (
        pytest.raises(ModelError, match="StaticSlidingWindowLayer cannot be pruned inside the LLM"),
        tp.prune(*built, Within(), keep_tokens=4),
    ):
        model.generate(**inputs, **{CACHE: cache}, max_new_tokens=2)


def test_a_static_cache_before_the_llm(built):
    """The model makes its masks elsewhere then."""
    inputs = FAMILY.ask(built[1], *ROWS)
    with tp.prune(*built, Project(), keep_tokens=4):
        plain = built[0].generate(**inputs, max_new_tokens=6)
        how = {"cache_implementation": "static", "disable_compile": True}
        assert torch.equal(built[0].generate(**inputs, max_new_tokens=6, **how), plain)


def test_beam_search(built):
    """``generate`` takes no input embeddings here, so that the reference is each row by itself."""
    inputs, how = FAMILY.ask(built[1], *ROWS), {"num_beams": 3, "max_new_tokens": 6, "length_penalty": 0.0}
    plain = built[0].generate(**inputs, **how)
    with tp.prune(*built, Project(), keep_ratio=1.0):
        assert torch.equal(built[0].generate(**inputs, **how), plain)
    with tp.prune(*built, Project(), keep_tokens=4):
        together = built[0].generate(**inputs, **how)[:, inputs["input_ids"].shape[1] :]
        for row in (0, 2):
            alone = FAMILY.ask(built[1], *ROWS, only=row)
            assert torch.equal(built[0].generate(**alone, **how)[0, alone["input_ids"].shape[1] :], together[row])
    assert not torch.equal(together, plain[:, inputs["input_ids"].shape[1] :])


@torch.no_grad()
def test_signals_follow_their_patches(built):
    model, inputs = built[0], FAMILY.ask(built[1], 1, 2)
    tokens = session_for(*built).visual_tokens(inputs, VISION, tower=shared_tower())
    tower = model.base_model.vision_tower
    assert tokens.grid == (3, 3)
    for row, pixels in enumerate(inputs["pixel_values"]):
        seen = tower(pixels[None], output_hidden_states=True)
        last = tower.encoder.layers[-1]
        keys = last.self_attn.k_proj(last.layer_norm1(seen.hidden_states[-2]))
        embeds = shared_tower().project(seen.last_hidden_state, normed=True)
        for number in range(TOKENS):
            y, x = divmod(number, 3)
            patches = [6 * (2 * y + dy) + 2 * x + dx for dy in range(2) for dx in range(2)]
            hidden, key = seen.last_hidden_state[0, patches].mean(0), keys[0, patches].mean(0)
            torch.testing.assert_close(tokens.signals["vision_hidden"][row, number], hidden, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(tokens.signals["keys"][row, number], key, atol=1e-4, rtol=1e-4)
            embed = embeds[0, patches].mean(0)
            torch.testing.assert_close(tokens.signals["clip_image_embeds"][row, number], embed, atol=1e-4, rtol=1e-4)
            normed = model.base_model.multi_modal_projector.mm_soft_emb_norm(hidden)
            feature = normed @ model.base_model.multi_modal_projector.mm_input_projection_weight
            torch.testing.assert_close(tokens.features[row, number], feature, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("more", [0, 1] if CHUNKS_WORK else [0])
def test_a_second_turn(built, more):
    """On the cache it says what it says without."""
    model, processor = built
    inputs = FAMILY.ask(processor, 2, 2)
    text = processor(
        text=["USER: " + "<start_of_image>" * more + "is there a star ? ASSISTANT:"] * 2,
        images=[[picture(7 + row)] for row in range(2)] if more else None,
        return_tensors="pt",
    )
    with tp.prune(model, processor, Project(), keep_tokens=4):
        first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        said = torch.zeros(2, 3, dtype=torch.long)
        joined = {"input_ids": torch.cat([first.sequences, text["input_ids"]], 1)}
        for name, between in {"token_type_ids": said, "attention_mask": said + 1}.items():
            joined[name] = torch.cat([inputs[name], between, text[name]], 1)
        pixels = [inputs["pixel_values"]]
        if more:
            old, new = inputs["pixel_values"], text["pixel_values"]
            pixels = [old[:2], new[:1], old[2:], new[1:]]
        second = {**joined, "pixel_values": torch.cat(pixels)}
        whole = model.generate(**second, max_new_tokens=5, return_dict_in_generate=True, output_logits=True)
        assert torch.equal(model.generate(**second, **{CACHE: cache_of(first)}, max_new_tokens=5), whole.sequences)
        if not more:  # a forward takes what is new alone, the last answer token among it
            first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
            new = {**joined, "input_ids": joined["input_ids"][:, inputs["input_ids"].shape[1] + 2 :]}
            logits = model(**new, **{CACHE: cache_of(first)}).logits[:, -1]
            torch.testing.assert_close(logits, whole.logits[0], atol=5e-5, rtol=0)


def test_images_of_a_later_turn_are_refused_where_transformers_masks_them_wrongly(built, monkeypatch):
    inputs = FAMILY.ask(built[1], 1)
    monkeypatch.setattr("tokenprune.adapters.gemma3.CHUNKS_WORK", False)
    with tp.prune(*built, Project(), keep_tokens=4):
        first = built[0].generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        joined = {"input_ids": torch.cat([first.sequences, inputs["input_ids"]], 1)}
        said = torch.zeros(1, 3, dtype=torch.long)
        for name, between in {"token_type_ids": said, "attention_mask": said + 1}.items():
            joined[name] = torch.cat([inputs[name], between, inputs[name]], 1)
        pixels = inputs["pixel_values"].repeat(2, 1, 1, 1)
        with pytest.raises(
            ModelError, match=r"masks images of a later turn wrongly; give all at first or take >= 5.23"
        ):
            built[0].generate(**joined, pixel_values=pixels, **{CACHE: cache_of(first)}, max_new_tokens=2)


def test_inputs_that_do_not_fit(built):
    adapter, inputs = adapter_for(*built), FAMILY.ask(built[1], 2, 1)
    with pytest.raises(ModelError, match=r"must be \(images, 3, 48, 48\), got \(3, 3, 40, 48\)"):
        Session(adapter).encode({**inputs, "pixel_values": inputs["pixel_values"][..., :40, :]})
    with pytest.raises(ModelError, match="token_type_ids must be 1 for the images' placeholders"):
        Session(adapter).encode({**inputs, "token_type_ids": torch.zeros_like(inputs["token_type_ids"])})


@pytest.mark.parametrize(
    "pruner", [Project(positions="original"), Within(positions="original")], ids=["before", "inside"]
)
def test_sequence_classification(pruner):
    """A classifier's forward, with one label a row: what it reads of a pruned prompt is its last token."""
    from transformers import Gemma3ForSequenceClassification

    model, processor = FAMILY.make("sdpa")
    torch.manual_seed(0)
    classifier = Gemma3ForSequenceClassification(model.config).eval()
    classifier.model.load_state_dict(model.model.state_dict())
    inputs = FAMILY.ask(processor, 1, 2)
    with torch.no_grad():
        plain = classifier(**inputs, labels=torch.tensor([0, 1]))
        with tp.prune(classifier, processor, pruner, keep_ratio=1.0):
            kept = classifier(**inputs, labels=torch.tensor([0, 1]))
        with tp.prune(classifier, processor, pruner, keep_tokens=4) as trace:
            pruned = classifier(**inputs, labels=torch.tensor([0, 1]))
        alone = FAMILY.ask(processor, 1, 2, only=1)
        with tp.prune(classifier, processor, pruner, keep_tokens=4):
            second = classifier(**alone)
    assert torch.equal(kept.logits, plain.logits)
    assert kept.loss == plain.loss
    assert len(trace.calls) == 1
    assert not torch.equal(pruned.logits, plain.logits)
    torch.testing.assert_close(second.logits[0], pruned.logits[1])
