"""What is done to and around a model: wrappers, copies, compilation, dtypes, hooks."""

import copy
import functools
import pickle
import tempfile
from typing import Any

import pytest
import torch

import tokenprune as tp
from block_cases.base import NEW, Subject, case, left_on, same

AROUND = "around the model"
TUNED = "the prompt reaches the model as embeddings or through a cache"


@case(AROUND, "a copy (`deepcopy`, pickle) that is made in a block is a model of its own")
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    with s.prune():
        copies = [copy.deepcopy(s.model), pickle.loads(pickle.dumps(s.model))]
        assert type(copy.copy(s.model)) is type(copies[0])
        with tp.prune(s.model, s.processor, None):
            plain = s.logits(x)
        for other in copies:
            assert type(other) is type(s.family.build("sdpa")[0])
            same(s.logits(x, other), plain)
    for other in copies:
        assert left_on(other)[0] == left_on(s.model)[0]
        with s.prune(other) as trace:
            s.logits(x, other)
        assert len(trace.calls) == 1


@case(AROUND, "a headless model (`AutoModel`)")
def _(s: Subject) -> None:
    x, bare = s.inputs(), s.model.base_model
    with torch.no_grad():
        plain = bare(**x).last_hidden_state
        with s.prune(bare, keep_ratio=1.0):
            same(bare(**x).last_hidden_state, plain)
        with s.prune(bare), s.prune():
            hidden = bare(**x).last_hidden_state
        torch.testing.assert_close(s.model.lm_head(hidden[:, -1]), s.pruned(x)[0][:, -1])


@case(AROUND, "PEFT: LoRA")
def _(s: Subject) -> None:
    from peft import LoraConfig, get_peft_model

    s, x = s.own(), s.inputs()
    logits, said = s.pruned(x)
    lora = LoraConfig(r=2, target_modules=r".*(q_proj|v_proj)", task_type="CAUSAL_LM")
    tuned = get_peft_model(s.model, lora).eval()  # which adds nothing before it is trained
    for model in (tuned, s.model):
        with s.prune(model) as trace:
            torch.testing.assert_close(s.logits(x, tuned), logits)
            same(tuned.generate(**x, max_new_tokens=NEW), said)
        assert len(trace.calls) == 2


@case(AROUND, "PEFT: prompt tuning", before=TUNED, inside=TUNED)
def _(s: Subject) -> None:
    from peft import PromptTuningConfig, get_peft_model

    s = s.own()
    tuned = get_peft_model(s.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with s.prune(tuned):
        tuned.generate(**s.inputs(), max_new_tokens=2)


@case(AROUND, "`torch.compile(model)`, before or in the block", some=True)
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    plain, (logits, said) = s.logits(x), s.pruned(x)
    compiled = torch.compile(s.model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(s.logits(x, compiled), plain)
        for model in (s.model, compiled):
            with s.prune(model) as trace:
                torch.testing.assert_close(s.logits(x, compiled), logits)
                same(compiled.generate(**x, max_new_tokens=NEW), said)
            assert len(trace.calls) == 2


@case(AROUND, "`model.compile()`, `model.forward = torch.compile(...)`", inside="compiled as a whole", some=True)
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    plain, (logits, said) = s.logits(x), s.pruned(x)
    s.model.compile(backend="eager")
    torch.testing.assert_close(s.logits(x), plain)
    with s.prune() as trace:
        torch.testing.assert_close(s.logits(x), logits)
        same(s.model.generate(**x, max_new_tokens=NEW), said)
    assert len(trace.calls) == 2
    s.model._compiled_call_impl = None
    s.model.forward = torch.compile(s.model.forward, backend="eager")
    with s.prune():
        torch.testing.assert_close(s.logits(x), logits)


TRACED = "a model cannot be traced while it is pruned"


@case(AROUND, "`torch.jit.trace`", before=TRACED, inside=TRACED, some=True)
def _(s: Subject) -> None:
    x = s.inputs()
    names = list(x)
    with s.prune():
        torch.jit.trace(lambda *given: s.model(**dict(zip(names, given, strict=True))).logits, tuple(x.values()))


@case(AROUND, "layers compiled one by one", some=True)
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    plain, (logits, said) = s.logits(x), s.pruned(x)
    for layer in s.model.get_decoder().layers:
        layer.compile(backend="eager")
    torch.testing.assert_close(s.logits(x), plain)
    with s.prune():
        torch.testing.assert_close(s.logits(x), logits)
        same(s.model.generate(**x, max_new_tokens=NEW), said)
    torch.testing.assert_close(s.logits(x), plain)


@case(AROUND, "`model.forward` and `model.generate` replaced by wrappers, before or in the block")
def _(s: Subject) -> None:
    s, x, called = s.own(), s.inputs(), []
    logits, said = s.pruned(x)

    def wrapped(own: Any) -> Any:
        @functools.wraps(own)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            called.append(own)
            return own(*args, **kwargs)

        return wrapper

    s.model.forward = wrapped(s.model.forward)
    with s.prune() as trace:
        same(s.logits(x), logits)
        s.model.forward, s.model.generate = wrapped(s.model.forward), wrapped(s.model.generate)
        same(s.logits(x), logits)
        same(s.model.generate(**x, max_new_tokens=NEW), said)
    assert len(trace.calls) == 3
    assert len(called) == 1 + 2 + 1 + 2 * NEW
    del s.model.forward, s.model.generate
    with s.prune():
        same(s.logits(x), logits)


PAST = "the images go past what is pruned"


@case(AROUND, "`model.model(...)`, or a `forward` that was read before the block", before=PAST, inside=PAST)
def _(s: Subject) -> None:
    x, forward = s.inputs(), s.model.forward
    with s.prune(), torch.no_grad():
        with tp.prune(s.model, s.processor, None):
            forward(**x)
        with pytest.raises(tp.TokenPruneError, match=PAST):
            s.model.base_model(**x)
        forward(**x)


@case(AROUND, "`torch.autocast`: the model computes as without a block, pruners in float32")
def _(s: Subject) -> None:
    x = s.inputs()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            plain = s.logits(x)
            with s.prune(keep_ratio=1.0):
                same(s.logits(x), plain)
            with s.prune() as trace:
                s.model.generate(**x, max_new_tokens=2)
        assert len(trace.calls) == 1


@case(AROUND, "another default dtype")
def _(s: Subject) -> None:
    x = s.inputs()
    plain, (logits, said) = s.logits(x), s.pruned(x)
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            bare = s.logits(x)
            found, answer = s.pruned(x)
        finally:
            torch.set_default_dtype(torch.float32)
        if torch.equal(bare, plain):  # some models give other logits by themselves
            same(found, logits)
            same(answer, said)


@case(AROUND, "parts on disk (`device_map`)", some=True)
def _(s: Subject) -> None:
    x = s.inputs()
    logits, said = s.pruned(x)
    parts = [name for name, _ in s.model.base_model.named_children()]
    with tempfile.TemporaryDirectory() as folder:
        s.model.save_pretrained(folder)
        for disk in parts:
            places = {f"model.{part}": "disk" if part == disk else "cpu" for part in parts} | {"lm_head": "cpu"}
            how = {"device_map": places, "offload_folder": f"{folder}/off", "dtype": s.model.dtype}
            off = type(s.model).from_pretrained(folder, **how).eval()
            off.generation_config.eos_token_id = None
            with s.prune(off):
                torch.testing.assert_close(s.logits(x, off), logits)
                same(off.generate(**x, max_new_tokens=NEW), said)


@case(AROUND, "a user's own hooks on the model and its layers")
def _(s: Subject) -> None:
    x, seen = s.inputs(), []
    layer = s.model.get_decoder().layers[3]
    handles = [
        s.model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
        ),
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0])),
        layer.register_forward_hook(lambda module, args, output: seen.append(args[0])),
    ]
    try:
        with s.prune() as trace:
            s.logits(x)
    finally:
        for handle in handles:
            handle.remove()
    ids, before, after = seen
    same(ids, x["input_ids"])
    gone = trace.counts[0][0] - trace.counts[0][1]
    assert before.shape[1] == after.shape[1] == ids.shape[1] - gone
