"""Models with parts on disk, or in the CPU's memory beside a GPU: such weights are on ``meta`` until a module runs."""

import copy
import functools
import tempfile

import pytest
import torch
from accelerate import dispatch_model
from tiny_towers import InTower
from two_gpus import dispatched, on_cpu, on_gpus, spread

import tokenprune as tp
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import TowerAttention, TowerKeys
from tokenprune.core.stages import decoder
from tokenprune.engine.stopwatch import now
from tokenprune.testing.checkpoints import save_llava
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import ask

METHODS = {
    "cdpruner": {"conditioning": "prompt_embedding"},
    "received": {"conditioning": "received_attention"},
    "pooling": {},
    "fastv": {"layer": 2, "positions": "original"},
    "dart": {"layer": 2, "positions": "original"},
    "pyramiddrop": {"positions": "original"},
    "sparsevlm": {"version": "plus", "heads": 2},
    "dop": {"base": "divprune", "attention_depth": 2, "mlp_depth": 3},
}
PARTS = ("vision_tower", "multi_modal_projector", "embed_tokens", "language_model", "lm_head")


@functools.cache
def off(family, *parts):
    """A model with some of its parts on disk, by their names; with all of it if none are named."""
    model, _ = families()[family].build("sdpa")
    folder = tempfile.TemporaryDirectory()
    places = {
        name: "disk" if not parts or set(parts) & set(name.split(".")) else "cpu" for name in spread(model, split=2)
    }
    skip = model._skip_keys_device_placement
    moved = dispatch_model(copy.deepcopy(model), places, offload_dir=folder.name, skip_keys=skip)
    moved.folder = folder  # as long as the model
    return moved


def answer(model, processor, inputs, name):
    pruner = "cdpruner" if name == "received" else name
    with torch.no_grad(), tp.prune(model, processor, pruner, keep_tokens=6, **METHODS[name]) as trace:
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    return on_cpu(out).tolist(), [stage.keep for stage in trace.stages]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llava", "internvl", "mistral3", "gemma3", "qwen2_5_vl"])
def test_all_on_disk(family, name):
    model, processor = families()[family].build("sdpa")
    inputs = families()[family].ask(processor, 1, 2)
    assert off(family).device.type == "meta"
    assert answer(off(family), processor, inputs, name) == answer(model, processor, inputs, name)


@pytest.mark.parametrize("parts", [(), ("vision_tower",)], ids=["all", "the tower"])
def test_stages_in_a_tower_on_disk(llava, parts):
    model, processor = llava
    inputs, found = ask(processor, 1, 2), []
    pruner = InTower(1, 2, after=(decoder(2),), requires=[TowerKeys(0), TowerAttention("cls")])
    for each in (model, off("llava", *parts)):
        with torch.no_grad(), tp.prune(each, processor, pruner, keep_tokens=6) as trace:
            out = each.generate(**inputs, max_new_tokens=3, do_sample=False)
        found.append((on_cpu(out).tolist(), [stage.keep for stage in trace.stages]))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["cdpruner", "received", "pyramiddrop", "dop"])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_on_disk(llava, part, name):
    model, processor = llava
    inputs = ask(processor, 1, 2)
    moved = off("llava", part)
    assert {weight.device.type for weight in moved.parameters()} == {"cpu", "meta"}
    assert answer(moved, processor, inputs, name) == answer(model, processor, inputs, name)


def test_a_text_tower(llava, tmp_path):
    model, processor = llava
    inputs, how = ask(processor, 1, 2), {"text_tower": str(save_llava(tmp_path) / "clip"), "keep_tokens": 6}
    kept = []
    for each in (model, off("llava")):
        with tp.prune(each, processor, "cdpruner", **how) as trace:
            each.generate(**inputs, max_new_tokens=2)
        kept.append(trace.stages[0].keep)
    assert kept[0] == kept[1]


def test_position_embeddings_on_disk_cannot_be_interpolated(llava):
    _, processor = llava
    inputs = ask(processor, 1)
    with pytest.raises(ModelError, match="not in memory"), tp.prune(off("llava"), processor, "resize", keep_tokens=6):
        off("llava").generate(**inputs, max_new_tokens=2)
    with tp.prune(off("llava", "language_model"), processor, "resize", keep_tokens=6) as trace:
        off("llava", "language_model").generate(**inputs, max_new_tokens=2)
    assert trace.counts == [(25, 6)]


@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")  # transformers asks the first weight
@pytest.mark.parametrize("name", METHODS)
def test_in_memory_beside_a_gpu(llava, name):
    """The vision tower, the embeddings and the second half of the layers come to the GPU when they run."""
    model, processor = llava
    inputs, both = ask(processor, 1, 2), {"vision_tower": "cpu", "embed_tokens": "cpu"}
    places = {place: "cpu" if at == "cuda:1" else at for place, at in spread(model, 2, **both).items()}
    moved = dispatched(copy.deepcopy(model), places)
    with on_gpus(inputs) as placed:
        assert answer(moved, processor, placed, name) == answer(model, processor, inputs, name)


def test_the_clock_of_an_offloaded_model():
    assert now(torch.device("meta")) <= now(torch.device("cpu"))
