"""Tokens that leave between the attention and the MLP of a layer."""

import pytest
import torch

import tokenprune as tp
from tokenprune.adapters.cache_argument import cache_of
from tokenprune.core.errors import ModelError
from tokenprune.core.stages import decoder
from tokenprune.testing.families.llava import ask, shared_llava, tiny_llava, tiny_processor
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.testing.pruner_on_models import TINY
from tokenprune.testing.pruners import Within

DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False, "max_new_tokens": 9}
BEHIND = Within(layers=(0, 3), after="attention")


@pytest.fixture(params=["sdpa", "eager"])
def llava(request):
    return shared_llava(request.param)


@pytest.mark.parametrize("positions", ["original", "repacked"])
@pytest.mark.parametrize("layers", [(2,), (0, 3)], ids=str)
def test_the_layer_attends_to_all_and_later_ones_to_what_is_left(llava, layers, positions):
    model, processor = llava
    inputs, pruner = ask(processor, 1, 2), Within(layers=layers, after="attention", positions=positions)
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        out = model.generate(**inputs, **DETAILS)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    wanted = masked_layers_logits(model, inputs, trace.stages, [positions] * len(layers), tokens)
    torch.testing.assert_close(torch.stack(out.logits, 1), wanted, atol=1e-4, rtol=0)
    assert [str(stage.stage) for stage in trace.stages] == [f"layer={at}, after=attention" for at in layers]
    length, first = inputs["input_ids"].shape[1] + 8, layers[0]
    held = [layer.keys.shape[2] for layer in cache_of(out).layers]
    assert held[: first + 1] == [length] * (first + 1)
    assert all(each < length for each in held[first + 1 :])


def test_the_mlp_runs_for_what_is_left_alone(llava):
    model, processor = llava
    inputs, seen = ask(processor, 1), []
    hook = (
        model.get_decoder().layers[2].mlp.gate_proj.register_forward_pre_hook(lambda m, a: seen.append(a[0].shape[1]))
    )
    with tp.prune(model, processor, Within(after="attention"), keep_tokens=7), torch.no_grad():
        model(**inputs)
    hook.remove()
    assert seen == [inputs["input_ids"].shape[1] - 18]


def test_it_sees_the_attention_of_its_own_layer(llava):
    model, processor = llava
    inputs, keep = ask(processor, 1), []
    for pruner in (Within(layers=(2,), after="attention"), Within(layers=(3,)), Within(layers=(2,), own=True)):
        with tp.prune(model, processor, pruner, keep_tokens=7) as trace, torch.no_grad():
            model(**inputs)
        keep.append(trace.stages[0].keep)
    assert keep[0] == keep[1] == keep[2]  # of layer 2, as it ran on all tokens


def test_all_that_is_kept_is_the_model_bit_for_bit(llava):
    model, processor = llava
    inputs = ask(processor, 1, 2)
    plain = torch.stack(model.generate(**inputs, **DETAILS).logits)
    with tp.prune(model, processor, BEHIND, keep_ratio=1.0):
        assert torch.equal(torch.stack(model.generate(**inputs, **DETAILS).logits), plain)
    assert not model.get_decoder().layers[0].mlp._forward_hooks


def test_the_plan_has_its_attention_but_not_its_mlp():
    plan = tp.OperationPlan.drop_at(TINY, [decoder(1, after="attention")], [3], 9)
    assert [[plan.tokens(layer, op) for op in range(3)] for layer in range(3)] == [[9] * 3, [9, 9, 3], [3] * 3]


def test_merging_is_refused(llava):
    model, processor = llava

    class Folding(Within):
        def _select(self, tokens, k):
            keep = torch.arange(k).expand(tokens.batch_size, -1)
            return tp.TokenSelection(
                keep, tokens.num_tokens, into=torch.arange(tokens.num_tokens).clamp(max=k - 1)[None]
            )

    with (
        tp.prune(model, processor, Folding(after="attention"), keep_tokens=7),
        pytest.raises(ModelError, match="at the stage layer=2, after=attention tokens can only be dropped"),
    ):
        model(**ask(processor, 1))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_is_refused():
    """The second run of the layer would keep all tokens."""
    model, processor = tiny_llava("sdpa"), tiny_processor()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = ask(processor, 1)
    with (
        tp.prune(model, processor, Within(after="attention"), keep_tokens=7),
        pytest.raises(ModelError, match="gradient checkpointing runs layers again"),
    ):
        model(**inputs, labels=inputs["input_ids"], use_cache=False)
