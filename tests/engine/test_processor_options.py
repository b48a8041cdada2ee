"""Options of processors, the system's words and padding, on tiny families."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tokenprune.core.errors import ConfigError, ModelError
from tokenprune.core.sample import Sample
from tokenprune.engine.loading import find_checkpoint
from tokenprune.engine.processor_options import check_system, mean_colour, with_options
from tokenprune.sweeps import runner
from tokenprune.sweeps.config import parse_config
from tokenprune.testing.checkpoints import save_llava
from tokenprune.testing.families import families
from tokenprune.testing.pictures import picture

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] }} {% else %}"
    "{{ m['role'].upper() }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %} {% endif %}{% endfor %}ASSISTANT:"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="module")
def chatty(checkpoint, tmp_path_factory):
    """The checkpoint with a chat template that writes what the system says."""
    folder = tmp_path_factory.mktemp("chatty") / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


def test_options_go_to_the_parts_that_know_them():
    _, processor = families()["qwen2_5_vl"].build("sdpa")
    changed = with_options(processor, {"min_pixels": 64, "max_pixels": 1600})
    for part in ("image_processor", "video_processor"):
        assert getattr(changed, part).size == {"shortest_edge": 64, "longest_edge": 1600}
        assert getattr(processor, part).size != getattr(changed, part).size
        assert getattr(changed, part).patch_size == getattr(processor, part).patch_size
    assert with_options(processor, {}) is processor


def test_fewer_pixels_make_fewer_visual_tokens():
    _, processor = families()["qwen2_5_vl"].build("sdpa")
    large = picture(0, 80, 80)

    def tokens(options):
        changed = with_options(processor, options)
        return int(changed.image_processor(large, return_tensors="pt").image_grid_thw.prod())

    assert tokens({"max_pixels": 40 * 40}) < tokens({})


def test_an_option_that_nobody_knows():
    _, processor = families()["qwen2_5_vl"].build("sdpa")
    with pytest.raises(ConfigError, match=r"model\.processor has no option 'max_pixel' .*did you mean 'max_pixels'"):
        with_options(processor, {"max_pixel": 3})
    with pytest.raises(ConfigError, match="no option 'return_tensors'"):
        with_options(processor, {"return_tensors": "pt"})


def test_what_the_system_says_is_in_the_prompt(chatty):
    plain = find_checkpoint(chatty).load()
    spoken = find_checkpoint(chatty, system="where is it ?").load()
    sample = Sample.of(picture(1), "is there a star ?")
    short, long = (s.prepare([sample]).inputs["input_ids"][0].tolist() for s in (plain, spoken))
    words = plain.adapter.processor.tokenizer("where is it ?", add_special_tokens=False)["input_ids"]
    assert long[: len(words)] == words or long[1 : 1 + len(words)] == words
    assert len(long) == len(short) + len(words)


def test_a_system_that_cannot_be_written():
    with pytest.raises(ModelError, match=r"model\.system needs a chat template, which SimpleNamespace does not have"):
        check_system(SimpleNamespace(chat_template=None), "Be brief.")
    check_system(SimpleNamespace(chat_template=None), "")

    def silent(turns, **options):
        return "USER: ? ASSISTANT:"

    def strict(turns, **options):
        raise ValueError("System role not supported")

    for template, said in ((silent, "does not write what the system says"), (strict, "System role not supported")):
        with pytest.raises(ModelError, match=said):
            check_system(SimpleNamespace(chat_template="x", apply_chat_template=template), "Be brief.")


def test_pictures_are_padded(checkpoint):
    plain, padded = find_checkpoint(checkpoint).load(), find_checkpoint(checkpoint, square=True).load()
    colour = mean_colour(plain.adapter.processor)
    image = picture(1, 40, 90)
    by_hand = Image.new("RGB", (max(image.size),) * 2, colour)
    by_hand.paste(image, tuple((max(image.size) - side) // 2 for side in image.size))
    ours = padded.prepare([Sample.of(image, "where ?")]).inputs["pixel_values"]
    theirs = plain.prepare([Sample.of(by_hand, "where ?")]).inputs["pixel_values"]
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain.prepare([Sample.of(image, "where ?")]).inputs["pixel_values"])


def test_the_mean_colour_becomes_nearly_0(checkpoint):
    processor = find_checkpoint(checkpoint).load().adapter.processor
    grey = Image.new("RGB", (32, 32), mean_colour(processor))
    assert processor.image_processor(grey, return_tensors="pt").pixel_values.abs().max() < 0.02
    with pytest.raises(ModelError, match="needs a mean colour"):
        mean_colour(SimpleNamespace(image_processor=SimpleNamespace()))


def test_a_configuration_says_it_all(chatty, tmp_path):
    values = {
        "model": {"name": "llava", "path": chatty, "system": "where is it ?", "square": "pad"},
        "task": {"name": "scenes", "num_samples": 2},
        "pruner": "uniform",
        "budget": {"keep_tokens": 5},
        "timing_repeats": 0,
        "output": str(tmp_path / "runs"),
    }
    plain = runner.run(parse_config(values | {"model": {"name": "llava", "path": chatty}})).records[0]
    asked = runner.run(parse_config(values)).records[0]
    assert asked.metrics["text_tokens"] > plain.metrics["text_tokens"]
    assert asked.cell != plain.cell
    assert asked.config["model"]["square"] == "pad"
    with pytest.raises(ConfigError, match="has no option 'sise'"):
        runner.run(parse_config(values | {"model": {"name": "llava", "path": chatty, "processor": {"sise": 3}}}))
