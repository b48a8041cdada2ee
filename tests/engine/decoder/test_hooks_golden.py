"""The official code of FastV, PyramidDrop and SparseVLM, end to end: prefill, caches and decoding of a tiny LLaMA."""

import json

import numpy as np
import pytest
import torch
from golden_data import GOLDEN, load

from tokenprune import Budget, create_pruner
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.core.sizes import ModelSpec
from tokenprune.engine.decoder.hooks import InsideLLM
from tokenprune.engine.decoder.inside_plan import InsidePlan, PromptTokens
from tokenprune.towers.sizes import decoder_spec


def setting(name):
    """The golden arrays, the facts about them, and the LLaMA that they were made with."""
    from transformers import LlamaConfig, LlamaForCausalLM

    case = load(name)
    with np.load(GOLDEN / f"{name}.npz") as file:
        facts = json.loads(str(file["meta"]))
    weights = {key.removeprefix("sd."): value for key, value in case.items() if key.startswith("sd.")}
    width = case["inputs_embeds"].shape[2]
    config = LlamaConfig(
        vocab_size=len(weights["embed_tokens.weight"]),
        hidden_size=width,
        intermediate_size=weights["layers.0.mlp.up_proj.weight"].shape[0],
        num_hidden_layers=facts["layers"],
        num_attention_heads=facts["heads"],
        rms_norm_eps=facts["rms_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": facts["rope_theta"]},
    )
    model = LlamaForCausalLM(config).eval()
    model.model.load_state_dict(weights)
    return case, facts, model


def run(model, case, pruner, start, image, keep):
    """Hidden states (1, L, D) of the prompt, those of each decoding step, the cache, and what pruned."""
    length = case["inputs_embeds"].shape[1]
    visual = torch.zeros(1, length, dtype=torch.bool)
    visual[:, start : start + image] = True
    number = (visual.long().cumsum(1) - 1).masked_fill(~visual, -1)
    spec = ModelSpec(decoder_spec(model.config), model.config.vocab_size, image)
    quota = pruner.schedule(spec, Budget(keep_tokens=keep), image)
    prompt = PromptTokens(visual, number, [quota], lambda: torch.zeros(1, dtype=torch.long))
    with torch.no_grad(), InsideLLM(model, InsidePlan(pruner.steps(spec), prompt)) as inside:
        output = model.model(inputs_embeds=case["inputs_embeds"], use_cache=True)
        lengths = [layer.keys.shape[2] for layer in cache_of(output).layers]
        steps = [
            model.model(inputs_embeds=x[None, None], **{CACHE: cache_of(output)}).last_hidden_state[0, 0]
            for x in case["decode_inputs"]
        ]
    return output.last_hidden_state, torch.stack(steps), lengths, inside


def close(ours, official, tolerance):
    assert ((ours - official).abs().max() / official.abs().max()).item() < tolerance


def test_fastv():
    case, facts, model = setting("fastv_hf_tiny_e2e_k2")
    start, image = facts["image_start"], facts["image_len"]
    keep = round(image * (1 - facts["R"]))
    pruner = create_pruner("fastv", layer=facts["K"])
    hidden, steps, lengths, inside = run(model, case, pruner, start, image, keep)
    kept = torch.cat([torch.arange(start), torch.tensor(inside.stages[0].kept[0]) + start])
    kept = torch.cat([kept, torch.arange(start + image, facts["seq_len"])])
    assert kept.tolist() == case["keep_indexes"].tolist()
    close(hidden[:, kept], case["last_hidden_state"], 2e-4)
    close(steps, case["decode_hidden"], 2e-4)
    assert lengths == facts["kv_len_prefill"]


def test_pyramiddrop():
    case, facts, model = setting("pdrop_tiny_e2e")
    start, image = facts["image_start"], facts["image"]
    pruner = create_pruner("pyramiddrop", layers=tuple(facts["layer_list"]), ratios=tuple(facts["ratios"][1:]))
    hidden, steps, lengths, inside = run(model, case, pruner, start, image, int(image * facts["ratios"][-1]))
    alive = torch.arange(image)
    for layer, stage in zip(facts["layer_list"], inside.stages, strict=True):
        alive = alive[case[f"kept_rel_after{layer}"].long()]
        assert stage.kept[0] == alive.tolist()
    kept = torch.cat([torch.arange(start), alive + start, torch.arange(start + image, hidden.shape[1])])
    close(hidden[:, kept], case["last_hidden_state"], 2e-4)
    close(steps, case["decode_hidden"], 2e-4)
    assert lengths == facts["kv_len"]


def test_sparsevlm():
    case, facts, model = setting("sparsevlm_tiny_e2e_192_v1_0")
    start, image, text = facts["pre_prompt"], facts["image"], facts["text"]
    pruner = create_pruner("sparsevlm", layers=(2, 6, 15))
    hidden, steps, lengths, inside = run(model, case, pruner, start, image, 110)
    assert inside.stages[0].kept[0] == case["kept_L2"].tolist()
    merged = [alive.counts[0] for alive in inside.stages]
    assert merged == [309, 204, 113]
    official = case["last_hidden_state"]
    close(hidden[:, :start], official[:, :start], 2e-3)
    close(hidden[:, -text:], official[:, -text:], 2e-3)
    own = torch.tensor(inside.stages[-1].kept[0])
    close(hidden[:, start + own], official[:, start : start + len(own)], 2e-3)
    close(steps, case["decode_hidden"], 2e-3)
    assert lengths == case["kv_len"].tolist() == facts["kv_len"]


@pytest.mark.parametrize("name", ["fastv_hf_tiny_e2e_k2"])
def test_the_unpruned_model_is_the_official_one(name):
    """So that a difference above is one of the pruning."""
    case, _, model = setting(name)
    with torch.no_grad():
        hidden = model.model(inputs_embeds=case["inputs_embeds"]).last_hidden_state
    close(hidden, case["last_hidden_state_unpruned"], 2e-5)
