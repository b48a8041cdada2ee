import pytest
import torch
from transformers import PaliGemmaConfig

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.adapters.paligemma import PaliGemmaAdapter
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.signals import PairedImage, TowerKeys, TowerStates
from tokenprune.costs.flops import projector_flops, vision_flops
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.session import Session
from tokenprune.policies.divergence import Batch, Objective
from tokenprune.testing.checks import check_identity, check_masking, check_operations, generated
from tokenprune.testing.families.paligemma import FAMILIES, TOKENS, tiny_paligemma, tiny_processor
from tokenprune.testing.pictures import picture
from tokenprune.testing.pruners import Project, Within, depthwise
from tokenprune.testing.towers import shared_tower

ROWS = (1, 0, 2)
WINDOW = 13  # of the prompts with two images even those that are pruned are longer
FAMILY = FAMILIES["paligemma"]
VISION = frozenset({PairedImage(), TowerKeys(), TowerStates()})


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param


@pytest.fixture
def built():
    return FAMILY.build("sdpa")


@pytest.fixture(scope="module")
def second():
    """PaliGemma 2: short windows, and caps on attention scores and logits. Transformers has it with eager alone."""
    options = {"query_pre_attn_scalar": 16, "sliding_window": WINDOW, "final_logit_softcapping": 3.0}
    return tiny_paligemma("eager", "gemma2", attn_logit_softcapping=2.0, **options), tiny_processor()


def config_3b():
    """paligemma2-3b-mix-224, as its config on the hub says."""
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    text = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}
    return PaliGemmaConfig(
        vision_config={**vision, "model_type": "siglip_vision_model", "image_size": 224, "patch_size": 14},
        text_config={**text, "model_type": "gemma2", "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 257216},
        projection_dim=2304,
    )


def test_the_spec_of_the_3b_model():
    spec = PaliGemmaAdapter.spec_from_config(config_3b())
    assert (spec.visual_tokens, spec.vision_tokens, spec.llm.mlp_matrices) == (256, 256, 3)
    d, n = 1152, 256
    head = 4 * n * d**2 + 4 * d**2 + 4 * n * d + 4 * d * 4304  # one query over the patches, which nothing reads
    assert vision_flops(spec) == 27 * n * (8 * d**2 + 4 * d * 4304 + 4 * n * d) + 2 * n * 3 * 14**2 * d + head
    assert projector_flops(spec) == 2 * 256 * 1152 * 2304


def test_the_prefix_looks_ahead(built):
    """So that the reference of the contract's tests, and the model, do have a mask of their own."""
    model, inputs = built[0], FAMILY.ask(built[1], 1)
    suffix = {**inputs, "token_type_ids": (inputs["input_ids"] != 4).long()}  # all but the image
    with torch.no_grad():
        logits, causal = model(**inputs).logits, model(**suffix).logits
    assert (logits[:, 0] - causal[:, 0]).abs().max() > 1e-2


def test_positions_count_from_one(built):
    """In a forward, and in a prefill of what ``generate`` would number from 0."""
    seen = []
    decoder, adapter = built[0].get_decoder(), adapter_for(*built)
    handle = decoder.register_forward_pre_hook(lambda m, a, k: seen.append(k["position_ids"]), with_kwargs=True)
    inputs = FAMILY.ask(built[1], 1)
    with torch.no_grad(), tp.prune(*built, Project(positions="repacked"), keep_tokens=4):
        built[0](**inputs)
        built[0].generate(**inputs, max_new_tokens=1)
    Session(adapter).prefill(
        Session(adapter).prune_inputs(inputs, Project(positions="repacked"), Budget(keep_tokens=4))
    )
    handle.remove()
    length = inputs["input_ids"].shape[1] - TOKENS + 4
    assert [positions.tolist() for positions in seen] == [[list(range(1, length + 1))]] * 3


@pytest.mark.parametrize(
    "pruner",
    [Project(positions="original"), Project(positions="repacked"), Within(), Within(layers=(1, 3))],
    ids=["original", "repacked", "inside", "two"],
)
def test_the_second_generation(second, pruner):
    """Its windows count the tokens that entered the LLM."""
    inputs = FAMILY.ask(second[1], *ROWS)
    trace = check_masking(FAMILY, *second, inputs, pruner, keep_tokens=4)
    assert int(inputs["attention_mask"][2].sum()) - trace.counts[2][0] + trace.counts[2][1] > WINDOW


def test_keeping_everything_of_the_second_generation(second):
    inputs = FAMILY.ask(second[1], *ROWS)
    check_identity(*second, inputs, Project())
    plain = generated(second[0], inputs)
    with tp.prune(*second, Within(), keep_ratio=1.0):
        assert torch.equal(generated(second[0], inputs)[1], plain[1])


def test_operations_of_the_second_generation(second):
    check_operations(FAMILY, *second, FAMILY.ask(second[1], *ROWS), depthwise(4, 3, 2), keep_tokens=4)


def test_beam_search(built):
    inputs, how = FAMILY.ask(built[1], 1, 2), {"num_beams": 3, "max_new_tokens": 6, "length_penalty": 0.0}
    plain = built[0].generate(**inputs, **how)
    with tp.prune(*built, Project(), keep_ratio=1.0):
        assert torch.equal(built[0].generate(**inputs, **how), plain)
    with tp.prune(*built, Project(), keep_tokens=4):
        together = built[0].generate(**inputs, **how)[:, inputs["input_ids"].shape[1] :]
        for row in range(2):
            alone = FAMILY.ask(built[1], 1, 2, only=row)
            assert torch.equal(built[0].generate(**alone, **how)[0, alone["input_ids"].shape[1] :], together[row])
    assert not torch.equal(together, plain[:, inputs["input_ids"].shape[1] :])


@torch.no_grad()
def test_signals_follow_their_patches(built):
    model, inputs = built[0], FAMILY.ask(built[1], 1, 2)
    tokens = session_for(*built).visual_tokens(inputs, VISION, tower=shared_tower())
    tower = model.base_model.vision_tower
    assert tokens.grid == (3, 3)
    for row, pixels in enumerate(inputs["pixel_values"]):
        seen, last = tower(pixels[None], output_hidden_states=True), tower.encoder.layers[-1]
        keys = last.self_attn.k_proj(last.layer_norm1(seen.hidden_states[-2]))[0]
        hidden = seen.last_hidden_state[0]
        torch.testing.assert_close(tokens.signals["vision_hidden"][row], hidden, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(tokens.signals["keys"][row], keys, atol=1e-4, rtol=1e-4)
        embeds = shared_tower().project(hidden, normed=True)
        torch.testing.assert_close(tokens.signals["clip_image_embeds"][row], embeds, atol=1e-4, rtol=1e-4)
        feature = model.base_model.multi_modal_projector(hidden)
        torch.testing.assert_close(tokens.features[row], feature, atol=1e-4, rtol=1e-4)


def test_a_second_turn_is_refused(built):
    inputs = FAMILY.ask(built[1], 1)
    with tp.prune(*built, Project(), keep_tokens=4):
        first = built[0].generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        mask = torch.ones(1, first.sequences.shape[1] + 2, dtype=torch.long)
        longer = {"input_ids": torch.cat([first.sequences, first.sequences[:, -2:]], 1), "attention_mask": mask}
        with pytest.raises(ModelError, match="PaliGemma answers one prompt"):
            built[0].generate(**longer, **{CACHE: cache_of(first)}, max_new_tokens=2)


@torch.no_grad()
def test_a_suffix_does_not_belong_to_the_prefix(built):
    """In training the answer follows, and sees what is before it alone; so do its logits and the loss."""
    inputs = FAMILY.ask(built[1], 1)
    answer = torch.tensor([[9, 10, 11]])
    joined = {"pixel_values": inputs["pixel_values"], "input_ids": torch.cat([inputs["input_ids"], answer], 1)}
    for name, value in {"token_type_ids": 1, "attention_mask": 1}.items():
        joined[name] = torch.cat([inputs[name], torch.full((1, 3), value)], 1)
    with tp.prune(*built, Project(), keep_tokens=4):
        whole = built[0](**joined, labels=joined["input_ids"].masked_fill(joined["token_type_ids"] == 0, -100))
        short = {**inputs, "input_ids": inputs["input_ids"]}
        short.pop("labels")
        prompt = built[0](**short)
    length = prompt.logits.shape[1]
    torch.testing.assert_close(whole.logits[:, :length], prompt.logits, atol=5e-5, rtol=0)
    logits = whole.logits[0, length - 1 : -1]
    torch.testing.assert_close(whole.loss, torch.nn.functional.cross_entropy(logits, answer[0]))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_answers_that_are_given_do_not_look_ahead(built):
    """What policies are measured by: the unpruned model's own answers, seen as it saw them when it gave them."""
    samples = [Sample.of(picture(i), text, "yes", id=str(i)) for i, text in enumerate(["is there a star ?", "where ?"])]
    adapter = adapter_for(*built)
    batch = Batch(Session(adapter), samples, Objective(teacher_forced=True, max_new_tokens=6), frozenset())
    said, logits = generated(built[0], Session(adapter).prepare(samples).inputs)
    assert batch.answers.tolist() == said[:, :5].tolist()
    torch.testing.assert_close(batch.replay.logits, logits[:, :6], atol=5e-5, rtol=0)
    assert batch.pruned(Project(), Budget(keep_ratio=1.0)).max() < 1e-5
    assert batch.pruned(Project(), Budget(keep_tokens=4)).min() > 1e-3


def test_inputs_that_do_not_fit(built):
    adapter, inputs = adapter_for(*built), FAMILY.ask(built[1], 2, 1)
    with pytest.raises(ModelError, match=r"must be \(images, 3, 48, 48\), got \(3, 3, 40, 48\)"):
        Session(adapter).encode({**inputs, "pixel_values": inputs["pixel_values"][..., :40, :]})
    with pytest.raises(ModelError, match="token_type_ids must be there and be 0 for the prefix"):
        Session(adapter).encode({**inputs, "token_type_ids": torch.ones_like(inputs["token_type_ids"])})
    with pytest.raises(ModelError, match="token_type_ids must be there and be 0 for the prefix"):
        Session(adapter).encode({name: value for name, value in inputs.items() if name != "token_type_ids"})
