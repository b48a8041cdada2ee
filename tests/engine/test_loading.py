import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GPT2Config

import tokenprune as tp
from tokenprune.adapters.llava import LlavaAdapter
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError, ModelError
from tokenprune.engine import loading as load
from tokenprune.engine.loading import find_checkpoint
from tokenprune.engine.session import Session
from tokenprune.testing.checkpoints import save_llava
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.pruners import Project, Relevance
from tokenprune.testing.towers import tiny_clip
from tokenprune.towers.clip import CLS_TOKENS
from tokenprune.towers.text.base import load_text_tower


def load_session(path, **options):
    return find_checkpoint(path, **options).load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("llava")))


def test_a_checkpoint_as_a_user_loads_it(folder):
    """Nothing is given but the folder: processor and paired CLIP come from it, and CDPruner runs."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = ask(processor, 1, 2)
    with tp.prune(model, processor, "cdpruner", keep_tokens=8) as trace:
        out = model.generate(**inputs, max_new_tokens=4)
    assert trace.counts == [(25, 8), (50, 16)]
    assert out.shape[1] == inputs["input_ids"].shape[1] + 4
    original, _ = shared_llava("sdpa")
    with tp.prune(original, processor, "cdpruner", keep_tokens=8, text_tower=f"{folder}/clip") as again:
        assert torch.equal(original.generate(**inputs, max_new_tokens=4), out)
    assert torch.equal(again.keep, trace.keep)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_session(folder, dtype, attention):
    adapter = load_session(folder, dtype=dtype, attention=attention).adapter
    assert isinstance(adapter, LlavaAdapter)
    assert adapter.model.dtype == getattr(torch, dtype)
    assert not adapter.model.training
    assert {m.config._attn_implementation for m in (adapter.model, adapter.model.base_model.vision_tower)} == {
        attention
    }
    pruned = Session(adapter).prune_inputs(ask(adapter.processor, 1), Relevance(), Budget(keep_tokens=8))
    assert len(Session(adapter).generate(pruned.inputs, max_new_tokens=2).output) == 1


def test_a_given_text_tower_wins(folder, tmp_path):
    for part in tiny_clip(eos_token_id=2):
        part.save_pretrained(tmp_path)
    adapter = load_session(folder, text_tower=str(tmp_path)).adapter
    assert load_text_tower(adapter.model, adapter.text_tower, None).text_model.config.eos_token_id == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "flaot32"}, "dtype is 'flaot32'; did you mean 'float32'"),
        ({"dtype": "int8"}, "dtype is 'int8'; Allowed: bfloat16, float16, float32, float64"),
        ({"dtype": "nn"}, "dtype is 'nn'"),
        ({"dtype": "float8_e4m3fn"}, "'cpu' cannot compute in dtype 'float8_e4m3fn'"),
        ({"device": "qpu"}, "device 'qpu' cannot be used here"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"attention": "sdap"}, "attention is 'sdap'; did you mean 'sdpa'"),
    ],
)
def test_options_are_checked_before_anything_is_read(options, message):
    with pytest.raises(ConfigError, match=message):
        load_session("/no/such/folder", **options)


def test_checkpoints_that_cannot_be_loaded(tmp_path, folder, monkeypatch):
    with pytest.raises(ModelError, match="model 'nobody/nothing' cannot be loaded"):
        load_session("nobody/nothing")
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no adapter knows models of type 'gpt2'; known"):
        load_session(str(tmp_path))
    shared_llava("sdpa")[0].config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_session(str(tmp_path))  # there is no processor
    shared_llava("sdpa")[1].save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_session(str(tmp_path))  # there are no weights
    # A vision tower that the adapter does not know is refused before the weights are read.
    monkeypatch.delitem(CLS_TOKENS, "clip_vision_model")
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *a, **k: pytest.fail("weights read"))
    with pytest.raises(ModelError, match="'clip_vision_model' is not known"):
        load_session(folder)


def test_project_needs_no_clip(tmp_path):
    adapter = load_session(str(save_llava(tmp_path, clip=False))).adapter
    pruned = Session(adapter).prune_inputs(ask(adapter.processor, 1), Project(), Budget(keep_tokens=8))
    assert pruned.inputs["input_ids"].shape[1] == ask(adapter.processor, 1)["input_ids"].shape[1] - 17
    with pytest.raises(ModelError, match="give text_tower="):
        Session(adapter).prune_inputs(ask(adapter.processor, 1), Relevance(), Budget(keep_tokens=8))


def test_a_device_map_needs_accelerate(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="device_map 'auto' needs the package accelerate; pip install accelerate"):
        load.find_checkpoint(str(tmp_path), device_map="auto")
