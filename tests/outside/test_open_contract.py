"""What a third party writes with public names alone runs as what is shipped does."""

import re
from pathlib import Path

import pytest
import torch
from tiny_aya_vision import AyaVision

import tokenprune as tp
from tokenprune.adapters.cache_argument import cache_of
from tokenprune.engine.loading import session_for
from tokenprune.testing.checks import check_identity, check_masking
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.pruners import Project

FOLDER = Path(__file__).parent
LIMITS = {"visionzip.py": 40, "frames.py": 30, "aya_vision.py": 60, "signal.py": 25, "headwise.py": 30}


@pytest.mark.parametrize(("name", "limit"), LIMITS.items())
def test_a_file_is_short_and_imports_public_names(name, limit):
    lines = [line for line in (FOLDER / name).read_text().splitlines() if line]
    assert len(lines) <= limit
    ours = [line for line in lines if re.match(r"(from|import) tokenprune", line)]
    public = re.compile(r"import tokenprune as tp|from tokenprune import signals|from tokenprune\.towers\.")
    assert all(public.match(line) for line in ours)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision_video"])
def test_a_budget_of_a_video_goes_to_the_frames_with_news(outside, name):
    outside("frames.py")
    family = families()[name]
    model, processor = family.build("sdpa")
    inputs = family.ask(processor, 1, videos=(1,)) if name == "qwen2_5_vl" else family.ask(processor, 1)
    layout = session_for(model, processor).encode(inputs).layout
    with tp.prune(model, processor, "news", keep_tokens=7) as trace:
        model.generate(**inputs, max_new_tokens=2)
    assert trace.counts[0][1] == 7 * len(layout.sizes)
    frames = [unit for unit, item in enumerate(layout.items) if layout.items.count(item) > 1]
    assert len(frames) > 1
    shares = [len({*layout.numbers[layout.units[unit]].tolist()} & {*trace.stages[0].keep[0]}) for unit in frames]
    assert len(set(shares)) > 1  # not alike, as they are where frames get shares by their size


def test_a_signal_of_its_own(outside):
    outside("signal.py")
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1, 1)
    keep = {}
    for channel in (0, 2):
        with tp.prune(model, processor, "brightest", channel=channel, keep_tokens=6) as trace:
            model.generate(**inputs, max_new_tokens=1)
        keep[channel] = trace.keep
        pictures = torch.nn.functional.avg_pool2d(inputs["pixel_values"][:, channel], 8).flatten(1)
        assert torch.equal(trace.keep, pictures.topk(6).indices.sort().values)
    assert not torch.equal(keep[0], keep[2])


def test_the_examples_of_the_docs():
    text = (FOLDER.parents[1] / "docs" / "concepts.md").read_text()
    names = {"__name__": "docs_concepts"}
    exec(
        compile(re.search(r"test_open_contract.*?```python\n(.*?)```", text, re.DOTALL)[1], "concepts.md", "exec"),
        names,
    )
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1, 1)
    for name, fewest in (("AboveMean", 1), ("Fold", 6), ("FoldInTower", 6), ("VariedSegments", 6)):
        with tp.prune(model, processor, names[name](), keep_tokens=6) as trace:
            model.generate(**inputs, max_new_tokens=1)
        assert all(fewest <= kept <= 6 for _, kept in trace.counts)
    family = families()["llava_next"]
    model, processor = family.build("sdpa")
    with tp.prune(model, processor, names["VariedSegments"](), keep_tokens=12) as trace:
        model.generate(**family.ask(processor, 1), max_new_tokens=1)
    assert trace.counts[0][1] == 12


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_adapter(outside, attention):
    outside("aya_vision.py")
    family = AyaVision()
    model, processor = family.build(attention)
    inputs = family.ask(processor, 1, 2)
    assert type(session_for(model, processor).adapter).__name__ == "AyaVisionAdapter"
    check_identity(model, processor, inputs, tp.create_pruner("uniform"))
    check_masking(family, model, processor, inputs, Project(), keep_tokens=4)
    check_masking(family, model, processor, inputs, tp.create_pruner("fastv", layer=2), keep_tokens=4)
    with tp.prune(model, processor, "cdpruner", conditioning="received_attention", keep_tokens=4) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert all(kept < total for total, kept in trace.counts)


def test_cache_entries_by_head(outside):
    outside("headwise.py")
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1, 2)
    details = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**inputs, **details)
    with tp.prune(model, processor, "headwise", keep_tokens=5) as trace:
        out = model.generate(**inputs, **details)
    assert torch.equal(out.logits[0], plain.logits[0])
    assert not torch.equal(out.logits[1], plain.logits[1])
    assert [stage.counts for stage in trace.stages] == [[5, 10]] * 4
    held = [layer.keys.shape[2] for layer in cache_of(out).layers]
    assert held[0] == inputs["input_ids"].shape[1] + 3
    assert all(each < held[0] - 25 for each in held[1:])
