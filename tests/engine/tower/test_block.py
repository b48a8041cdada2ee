"""What people do around ``prune_vit``: the same kinds as around ``prune``."""

import contextvars
import copy
import threading

import pytest
import torch
from tiny_timm import images, tiny_vit

import tokenprune as tp


def stage(model, keep=9):
    return tp.prune_vit(model, "divprune", layer=1, keep_tokens=keep)


@torch.no_grad()
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupts_leave_nothing(error):
    model, pixels = tiny_vit(), images()
    plain = model(pixels)

    def interrupt(*_):
        raise error

    with stage(model):
        right = model(pixels)
        handle = model.blocks[2].register_forward_pre_hook(interrupt)
        with pytest.raises(error):
            model(pixels)
        handle.remove()
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert torch.equal(model(pixels), right)
    assert torch.equal(model(pixels), plain)


@torch.no_grad()
def test_a_generator_in_copied_contexts():
    model, pixels = tiny_vit(), images()
    plain = model(pixels)
    with stage(model):
        right = model(pixels)

    def stream():
        with stage(model):
            for _ in range(3):
                yield model(pixels)

    steps = stream()
    for _ in range(3):
        assert torch.equal(contextvars.copy_context().run(next, steps), right)
    assert contextvars.copy_context().run(next, steps, None) is None
    assert torch.equal(model(pixels), plain)


@torch.no_grad()
def test_copies_are_models_of_their_own():
    model, pixels = tiny_vit(), images()
    plain = model(pixels)
    with stage(model):
        copied = copy.deepcopy(model)
        assert torch.equal(copied(pixels), plain)
    assert type(copied) is type(model)


@torch.no_grad()
@pytest.mark.parametrize("compiled", ["before", "in place", "inside"])
def test_compiled_models(compiled):
    model, pixels = tiny_vit(), images()
    plain = model(pixels)
    with stage(model):
        right = model(pixels)
    called = model
    if compiled == "in place":
        model.compile(backend="eager")
    if compiled == "before":
        called = torch.compile(model, backend="eager")
        torch.testing.assert_close(called(pixels), plain)
    with stage(called) as trace:
        if compiled == "inside":
            called = torch.compile(model, backend="eager")
        torch.testing.assert_close(called(pixels), right)
    assert len(trace.calls) == 1
    torch.testing.assert_close(called(pixels), plain)


@torch.no_grad()
@pytest.mark.parametrize("method", ["forward_features", "forward_intermediates", "get_intermediate_layers"])
def test_other_ways_into_the_model(method):
    model, pixels = tiny_vit(), images()
    how = {} if method == "forward_features" else {"norm": True}
    with stage(model) as trace:
        output = getattr(model, method)(pixels, **how) if method != "forward_intermediates" else None
        if output is None:
            model.forward_intermediates(pixels, output_fmt="NLC")
    assert len(trace.calls) == 1


@torch.no_grad()
def test_two_threads_in_one_block_do_not_prune_twice():
    model, pixels = tiny_vit(), images()
    with stage(model):
        right, results = model(pixels), []
        contexts = [contextvars.copy_context() for _ in range(4)]

        def work(context):
            results.extend(context.run(model, pixels) for _ in range(5))

        threads = [threading.Thread(target=work, args=(context,)) for context in contexts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 20
    assert all(torch.equal(result, right) for result in results)
