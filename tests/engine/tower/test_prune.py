import contextvars
import re
import threading
from pathlib import Path

import pytest
import torch
from tiny_timm import ByCLS, ByKeys, images, tiny_vit

import tokenprune as tp
from tokenprune.core.errors import BudgetError, ConfigError, ModelError
from tokenprune.core.signals import TowerKeys


class Later(ByKeys):
    """Asks for the keys of a block that has not run."""

    requires = frozenset({TowerKeys(2)})


def hooks(model):
    return [
        hook
        for module in model.modules()
        for table in (module._forward_pre_hooks, module._forward_hooks)
        for hook in table.values()
    ]


@torch.no_grad()
def test_nothing_is_left_on_the_model():
    model, pixels = tiny_vit(), images()
    plain, kind = model(pixels), type(model)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}

    class Fails(ByKeys):
        def score(self, tokens):
            raise RuntimeError("in the pruner")

    with tp.prune_vit(model, ByCLS(), layer=2, keep_tokens=9):
        assert type(model) is not kind
        model(pixels)
        assert not hooks(model)
    assert type(model) is kind
    with pytest.raises(RuntimeError, match="in the pruner"), tp.prune_vit(model, Fails(), layer=2, keep_tokens=9):
        model(pixels)
    assert not hooks(model)
    assert torch.equal(model(pixels), plain)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


@torch.no_grad()
def test_the_innermost_block_applies_alone():
    model, other, pixels = tiny_vit(), tiny_vit("dinov3"), images()
    with tp.prune_vit(model, "divprune", layer=2, keep_tokens=9) as outer:
        first = model(pixels)
        with tp.prune_vit(model, "divprune", layer=1, keep_tokens=20) as inner:
            model(pixels)
            with tp.prune_vit(other, "divprune", layer=1, keep_tokens=3) as beside:
                other(pixels)
                model(pixels)
        assert torch.equal(model(pixels), first)
    assert [[tuple(keep.shape) for keep in call.values()] for call in outer.calls] == [[(3, 9)], [(3, 9)]]
    assert [list(call) for call in inner.calls] == [[1], [1]]
    assert inner.keep.shape == (3, 20)
    assert beside.keep.shape == (3, 3)
    assert not hooks(model)


@torch.no_grad()
def test_after_an_exception_in_a_forward_the_next_one_is_right():
    model, pixels = tiny_vit("dinov3"), images()
    with tp.prune_vit(model, "divprune", layer=1, keep_tokens=9) as trace:
        right = model(pixels)
        handle = model.blocks[2].register_forward_pre_hook(lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(pixels)
        handle.remove()
        assert torch.equal(model(pixels), right)
        # Blocks by hand, outside a forward, are the model's own.
        assert model.blocks[1](torch.zeros(1, 41, 32)).shape == (1, 41, 32)
    assert len(trace.calls) == 3


@torch.no_grad()
def test_threads_see_their_own_blocks():
    model, pixels = tiny_vit("dinov3"), images()
    plain, results = model(pixels), {}

    def unpruned():
        with pytest.warns(tp.UnprunedWarning):
            results["other"] = model(pixels)

    def shared(name):
        results[name] = model(pixels if name == "a" else pixels + 1)

    with tp.prune_vit(model, ByCLS(), layer=2, keep_tokens=9) as trace:
        expected = {"a": model(pixels), "b": model(pixels + 1)}
        copies = [threading.Thread(target=contextvars.copy_context().run, args=(shared, name)) for name in "ab"]
        threads = [threading.Thread(target=unpruned), *copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torch.equal(results["other"], plain)
    assert all(torch.equal(results[name], expected[name]) for name in "ab")
    assert len(trace.calls) == 4


@torch.no_grad()
def test_budgets():
    model, pixels = tiny_vit("registers"), images(1)

    def sizes(layer, **budget):
        with tp.prune_vit(model, "uniform", layer=layer, **budget) as trace:
            model(pixels)
        return [keep.shape[1] for keep in trace.stages.values()]

    assert sizes(0, keep_ratio=0.5) == [18]
    assert sizes((1, 2, 3), keep_ratio=1 / 8) == [17, 8, 4]  # round(36 / 8) = 4; each leaves (4 / 36) ** (1 / 3)
    assert sizes(2, average_tokens=27) == [18]  # of 36, 36, 18, 18
    with pytest.raises(BudgetError, match="exactly one"):
        sizes(2)
    with pytest.raises(BudgetError, match="exceeds the 36"), tp.prune_vit(model, "uniform", layer=2, keep_tokens=37):
        pass


@pytest.mark.parametrize(
    ("name", "pruner", "layer", "error", "message"),
    [
        (
            "vit",
            "cdpruner",
            2,
            ModelError,
            "a classifier without text, cannot give the signals clip_image_embeds or prompt_embeds, clip_te",
        ),
        (
            "vit",
            "fastv",
            2,
            ModelError,
            "a classifier without text, cannot give the signals text_attention; it offers cls",
        ),
        ("vit", "dart", 2, ModelError, r"cannot give the signals keys\[layer=previous\], normed_hidden, text_keys"),
        (
            "siglip",
            ByCLS(),
            2,
            ModelError,
            "without text and CLS token, cannot give the signals cls_attention; it offers keys",
        ),
        ("axial rope", ByCLS(), 2, ModelError, "without text and CLS token"),
        ("vit", tp.create_pruner("random", layer=2), 2, ConfigError, "Random says itself where or how much to prune"),
        ("vit", tp.create_pruner("dop", base="random", attention_depth=2), 2, ConfigError, "DOP says itself"),
        ("vit", Later(), 2, ModelError, r"tower_keys\[layer=2\] at tower\(2\): .*; allowed: 0 to 1"),
        ("vit", "divprune", 4, ConfigError, "layer is 4; it must be a block from 0 to 3, or several, ascending"),
        ("vit", ByKeys(), 0, ConfigError, "a block from 1 to 3, as its signals are of the block before, or several"),
        ("vit", "divprune", (2, 1), ConfigError, r"layer is \(2, 1\)"),
        ("vit", "divprune", (), ConfigError, r"layer is \(\)"),
        ("vit", "divprune", "2", ConfigError, "layer is '2'"),
        ("vit", "divprunee", 2, tp.TokenPruneError, "did you mean 'divprune'"),
    ],
)
def test_what_is_not_possible(name, pruner, layer, error, message):
    model = tiny_vit(name)
    with pytest.raises(error, match=message), tp.prune_vit(model, pruner, layer=layer, keep_tokens=9):
        pass
    assert not hooks(model)


def test_options_go_with_a_name():
    with pytest.raises(ConfigError, match="made already"):  # noqa: SIM117
        with tp.prune_vit(tiny_vit(), ByKeys(), layer=2, keep_tokens=9, seed=1):
            pass


def test_the_example_of_the_docs_runs(capsys):
    text = (Path(__file__).parents[3] / "docs" / "timm_vit.md").read_text()
    code = re.search(r"<!-- tested: tests/engine/tower/test_prune.py.*?-->\n```python\n(.*?)```", text, re.DOTALL)[1]
    exec(compile(code, "docs/timm_vit.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [
        "torch.Size([2, 1000]) torch.Size([2, 98])",
        str({3: torch.Size([2, 137]), 6: torch.Size([2, 96]), 9: torch.Size([2, 67])}),
    ]
