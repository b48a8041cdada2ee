"""What is pruned is what it would be without the caller's autocast, default dtype or device, or inference mode."""

import copy

import pytest
import timm
import torch
from tiny_timm import images, tiny_vit

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.core.budget import Budget
from tokenprune.core.signals import PairedImage, PairedText, RopeSimilarity
from tokenprune.engine.decoder.alive import Alive
from tokenprune.engine.decoder.stage_view import StageRows, StageView
from tokenprune.engine.decoder.tap import Attended
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.providers.inside import rope_similarity
from tokenprune.engine.session import Session
from tokenprune.pruners.base import create_pruner
from tokenprune.testing.checkpoints import save_llava
from tokenprune.testing.checks import GENERATION
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.families.parts import randomise
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.testing.surroundings import AUTOCAST, HARMLESS
from tokenprune.towers.attention import mean_attention
from tokenprune.towers.text.base import load_text_tower
from tokenprune.towers.timm_features import load_encoder

PRUNERS = {
    "divprune": {},
    "cdpruner": {"conditioning": "prompt_embedding"},
    "cdpruner cls": {"conditioning": "cls_attention"},
    "random": {},
    "pooling": {},
    "resize": {},
    "fastv": {"layer": 2},
    "dart": {"layer": 2},
    "pyramiddrop": {},
    "sparsevlm": {"noise": 0.1},
    "sparsevlm plus": {"version": "plus", "heads": 2},
    "dop": {"base": "random", "attention_depth": 2, "mlp_depth": 3},
}
QWEN = families()["qwen2_5_vl"]


def made(name):
    return create_pruner(name.split()[0], **PRUNERS[name])


@torch.no_grad()
def prefilled(model, processor, inputs, name):
    """Logits of the last position, and what was alive in the end."""
    adapter = adapter_for(model, processor)
    pruned = Session(adapter).prune_inputs(inputs, made(name), Budget(keep_tokens=6))
    ran = Session(adapter).prefill(pruned)
    logits = ran.output.logits
    alive = ran.stages[-1].kept if ran.stages else pruned.kept.tolist()
    return logits, alive


@pytest.mark.parametrize("around", HARMLESS)
@pytest.mark.parametrize("name", PRUNERS)
def test_changes_nothing(llava, name, around):
    model, processor = llava
    inputs = ask(processor, 1, 2)
    wanted = prefilled(model, processor, inputs, name)
    with HARMLESS[around]():
        found = prefilled(model, processor, inputs, name)
    assert torch.equal(found[0], wanted[0])
    assert found[1] == wanted[1]


@pytest.mark.parametrize("around", ["default bfloat16", "default float64", "inference mode"])
@pytest.mark.parametrize("family", ["llava_next", "internvl", "qwen2_5_vl", "gemma3"])
def test_other_families(family, around):
    family = families()[family]
    (model, processor), options = family.build("sdpa"), {"conditioning": "received_attention", "keep_tokens": 4}
    inputs = family.ask(processor, 1, 1)
    with torch.no_grad(), tp.prune(model, processor, "cdpruner", **options) as trace:
        wanted = model.generate(**inputs, max_new_tokens=3)
    with HARMLESS[around](), torch.no_grad(), tp.prune(model, processor, "cdpruner", **options) as again:
        found = model.generate(**inputs, max_new_tokens=3)
    assert torch.equal(found, wanted)
    assert again.stages[0].keep == trace.stages[0].keep


@pytest.mark.parametrize("around", HARMLESS)
def test_a_text_tower(llava, tmp_path, around):
    """It is our own: neither loading nor running it heeds what is set around."""
    patches = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))

    def embedded(folder):
        tower = load_text_tower(llava[0], str(folder / "clip"), None)
        return tower.project(patches), tower.embed_text(["is there a star ?", "a red star on the left of a circle ?"])

    wanted = embedded(save_llava(tmp_path / "plain"))
    folder = save_llava(tmp_path / "around")
    with HARMLESS[around]():
        found = embedded(folder)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("around", AUTOCAST)
def test_a_text_tower_computes_in_float32(llava, tmp_path, around):
    model, processor = llava
    adapter = adapter_for(model, processor, text_tower=str(save_llava(tmp_path) / "clip"))
    inputs, both = ask(processor, 1, 2), frozenset({PairedImage(), PairedText()})
    wanted = Session(adapter).visual_tokens(inputs, both).signals
    with AUTOCAST[around]():
        found = Session(adapter).visual_tokens(inputs, both).signals
    assert torch.equal(found[PairedText()], wanted[PairedText()])
    assert found[PairedImage()].dtype == torch.float32


@pytest.mark.parametrize("around", {**HARMLESS, **AUTOCAST})
def test_features_of_another_encoder(llava, monkeypatch, around):
    """It is not the caller's model either."""
    model, _ = llava
    build, sizes = timm.create_model, {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 48, "patch_size": 4}
    sizes["pretrained_cfg_overlay"] = {"input_size": (3, 48, 48)}

    def made(name, **_):
        torch.manual_seed(0)
        return randomise(build(name, num_classes=0, **sizes))

    monkeypatch.setattr(timm, "create_model", made)
    pictures = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    patches = lambda: load_encoder(copy.copy(model), "timm:vit_tiny_patch16_224").patches(pictures)  # noqa: E731
    with torch.no_grad():
        wanted = patches()
        with {**HARMLESS, **AUTOCAST}[around]():
            assert torch.equal(patches(), wanted)


@pytest.mark.parametrize("inside", [True, False], ids=["block inside", "block around"])
@pytest.mark.parametrize("name", ["divprune", "pyramiddrop", "dop"])
def test_turns_in_and_out_of_inference_mode(llava, name, inside):
    """What one turn leaves behind, the next may use in either mode."""
    model, processor = llava
    inputs = ask(processor, 1)
    more = processor.tokenizer("USER: is there a star ? ASSISTANT:", return_tensors="pt").input_ids[:, 1:]

    def turns(first_mode, second_mode):
        with tp.prune(model, processor, made(name), keep_tokens=6):
            with first_mode:
                first = model.generate(**inputs, **GENERATION)
            ids = torch.cat([first.sequences, more], 1)
            with second_mode:
                return model.generate(input_ids=ids, **{CACHE: cache_of(first)}, max_new_tokens=4).tolist()

    wanted = turns(torch.no_grad(), torch.no_grad())
    if inside:
        with torch.inference_mode():
            assert turns(torch.no_grad(), torch.no_grad()) == wanted
    else:
        assert turns(torch.inference_mode(), torch.no_grad()) == wanted
        assert turns(torch.no_grad(), torch.inference_mode()) == wanted


@pytest.mark.parametrize("around", AUTOCAST)
@pytest.mark.parametrize("name", PRUNERS)
def test_keeping_all_is_the_model_under_autocast(llava, name, around):
    """Bit for bit, in the prefill and in decoding."""
    model, processor = llava
    inputs = ask(processor, 1, 2)
    with AUTOCAST[around](), torch.no_grad():
        tokens, forward = model.generate(**inputs, **GENERATION), model(**inputs).logits
        with tp.prune(model, processor, made(name) if name != "dop" else "random", keep_ratio=1.0):
            again = model.generate(**inputs, **GENERATION)
            assert torch.equal(model(**inputs).logits, forward)
    assert torch.equal(again.sequences, tokens.sequences)
    assert all(map(torch.equal, again.logits, tokens.logits))


@pytest.mark.parametrize("around", AUTOCAST)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [name for name in PRUNERS if name not in ("pooling", "resize", "sparsevlm", "dop")])
def test_dropping_is_masking_under_autocast(name, attention, around):
    model, processor = shared_llava(attention)
    inputs = ask(processor, 1, 2)
    with AUTOCAST[around](), torch.no_grad():
        with tp.prune(model, processor, made(name), keep_tokens=6) as trace:
            out = model.generate(**inputs, **GENERATION)
        tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
        policies = [step.positions for step in made(name).steps(adapter_for(model, processor).spec)]
        wanted = masked_layers_logits(model, inputs, trace.stages, policies, tokens)
    torch.testing.assert_close(torch.stack(out.logits, 1).float(), wanted.float(), atol=0.25, rtol=0)


@pytest.mark.parametrize("around", AUTOCAST)
@pytest.mark.parametrize("name", ["cdpruner", "fastv", "sparsevlm plus"])
def test_qwen_under_autocast(name, around):
    model, processor = QWEN.build("sdpa")
    inputs = QWEN.ask(processor, 1, 2)
    options = {**PRUNERS[name], **({"positions": "original"} if name != "cdpruner" else {})}
    with AUTOCAST[around](), torch.no_grad():
        tokens = model.generate(**inputs, **GENERATION)
        with tp.prune(model, processor, name.split()[0], keep_ratio=1.0, **options):
            again = model.generate(**inputs, **GENERATION)
        with tp.prune(model, processor, name.split()[0], keep_tokens=4, **options):
            model.generate(**inputs, **GENERATION)
    assert all(map(torch.equal, again.logits, tokens.logits))


@pytest.mark.parametrize("around", AUTOCAST)
class TestScores:
    """Of the same queries and keys, scores are the same float32 under autocast."""

    def test_attention_inside(self, around):
        generator = torch.Generator().manual_seed(0)
        query, key = (torch.randn(2, heads, 9, 16, generator=generator) for heads in (4, 2))
        what, rows = Attended(query, key, 0.25, None, None, None), torch.tensor([[8], [8]])
        arguments = rows, torch.ones(2, 9, dtype=torch.bool), torch.arange(2)
        wanted = what.probabilities(*arguments)
        with AUTOCAST[around]():
            found = what.probabilities(*arguments)
        assert torch.equal(found, wanted)
        assert found.dtype == torch.float32

    def test_attention_in_the_vision_tower(self, around):
        key, query = torch.randn(2, 2, 12, 4, 8, generator=torch.Generator().manual_seed(0))
        wanted = mean_attention(key, query, 0.3)
        with AUTOCAST[around]():
            found = mean_attention(key, query, 0.3)
        assert torch.equal(found, wanted)

    def test_rope(self, around, llava):
        places = torch.arange(9)[None]
        alive = Alive.prompt(places >= 0, (places > 0) & (places < 5), (places - 1).masked_fill(places > 4, -1))
        rotation = llava[0].get_decoder().rotary_emb(torch.zeros(1, 9, 64), places)
        none = torch.zeros(1, 9, 64)
        attended = Attended(none[:, None], none[:, None], 0.25, None, None, None)
        view = StageView(alive, alive, none, none, {"previous": attended}, rotation, torch.nn.Identity(), 9)
        at = StageRows(view, torch.tensor([0]), torch.arange(1, 5)[None])
        wanted = rope_similarity(RopeSimilarity(rows="all"), at)
        with AUTOCAST[around]():
            found = rope_similarity(RopeSimilarity(rows="all"), at)
        assert torch.equal(found, wanted)

    def test_a_vit(self, around):
        model = tiny_vit("vit")
        with AUTOCAST[around](), torch.no_grad():
            whole = model(images())
            with tp.prune_vit(model, "divprune", layer=2, keep_ratio=1.0):
                assert torch.equal(model(images()), whole)
            for options in ({"pruner": "divprune"}, {"pruner": "cdpruner", "conditioning": "cls_attention"}):
                with tp.prune_vit(model, layer=2, keep_tokens=5, **options) as trace:
                    model(images())
                assert trace.keep.shape == (3, 5)
