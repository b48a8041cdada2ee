"""Turns of several pictures, of videos and of text alone on tiny models of every family."""

from dataclasses import dataclass

import numpy as np
import pytest

from tokenprune.core.budget import Budget
from tokenprune.core.clip import Clip
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.prompt.question import check_shown
from tokenprune.engine.session import Session
from tokenprune.pruners.uniform import Uniform
from tokenprune.testing.families import families
from tokenprune.testing.pictures import picture

IMAGES = ("llava", "llava_next", "llava_onevision", "qwen2_5_vl", "internvl", "gemma3", "mistral3", "idefics3")
VIDEOS = ("llava_onevision_video", "llava_next_video", "qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True)
class Told:
    """A turn of any parts in memory."""

    held: tuple

    @property
    def shape(self):
        shown = (part for part in self.held if not isinstance(part, str))
        return tuple(("video" if isinstance(part, Clip) else "image", part.size) for part in shown)

    @property
    def text(self):
        return " ".join(part for part in self.held if isinstance(part, str))

    def parts(self):
        return self.held


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 255, (64, 96, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return Clip(path, num_frames=4)


def answered(name, samples):
    """Numbers of visual tokens of each sample, and of what is left of them, of a batch that is answered."""
    session = Session(adapter_for(*families()[name].build("sdpa")))
    prepared = session.prepare(samples)
    pruned = session.prune_inputs(prepared.inputs, Uniform(), Budget(keep_ratio=0.5), prepared.questions)
    assert len(session.generate(pruned, max_new_tokens=2).output) == len(samples)
    return pruned.layout.free_tokens(), pruned.inputs["attention_mask"].sum(1), prepared.inputs["attention_mask"].sum(1)


def names(wanted):
    return [name for name in families() if name in wanted]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", names(IMAGES))
def test_several_pictures(name):
    held = ("is", picture(1, 64, 96), "the same as", picture(2, 64, 96), "?")
    one, two = Sample("1", Told((picture(1, 64, 96), "where ?")), "where ?"), Sample("2", Told(held), "the same ?")
    totals, left, whole = answered(name, [one, two])
    # Of several pictures of a prompt LLaVA-OneVision makes no tiles.
    assert 0 < totals[1] < 2 * totals[0] if name == "llava_onevision" else totals[1] == 2 * totals[0] > 0
    assert (left < whole).all()


@pytest.mark.parametrize("name", names(VIDEOS))
def test_videos(name, clip):
    asked = Sample("v", Told((clip, "what happens ?")), "what happens ?")
    totals, left, whole = answered(name, [asked, asked])
    assert totals[0] == totals[1] > 0
    assert (left < whole).all()


@pytest.mark.parametrize("name", names(VIDEOS))
def test_a_picture_and_a_video(name, clip):
    alone = Sample("v", Told((clip, "where ?")), "where ?")
    both = Sample("b", Told((picture(1, 64, 96), "and", clip, "where ?")), "where ?")
    assert answered(name, [both])[0][0] > answered(name, [alone])[0][0]


def test_what_a_model_cannot_see(clip):
    asked = Sample("v", Told((clip, "what happens ?")), "what happens ?", place="q.jsonl line 3")
    adapter = adapter_for(*families()["llava"].build("sdpa"))
    with pytest.raises(ModelError, match=r"q\.jsonl line 3: LlavaProcessor takes no videos"):
        check_shown(type(adapter), adapter.processor, [asked])


def test_text_alone_that_a_model_cannot_be_asked():
    adapter = adapter_for(*families()["paligemma"].build("sdpa"))
    with pytest.raises(ModelError, match="sample '7': PaliGemma answers no question without a picture"):
        check_shown(type(adapter), adapter.processor, [Sample.of(None, "where ?", id="7")])
    check_shown(type(adapter), adapter.processor, [Sample.of(picture(1), "where ?", id="7")])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", names(IMAGES))
def test_text_alone(name):
    session = Session(adapter_for(*families()[name].build("sdpa")))
    samples = [Sample.of(None, text) for text in ("where ?", "is there a star ?")]
    inputs = session.prepare(samples).inputs
    assert not session.adapter.placeholders(inputs["input_ids"]).any()
    assert len(session.generate(inputs, max_new_tokens=2).output) == 2


def test_a_template_that_cannot_write_a_turn(clip):
    model, processor = families()["llava"].build("sdpa")
    asked = Sample("v", Told((clip, "what happens ?")), "what happens ?")
    with pytest.raises(ModelError, match="sample 'v': the chat template of LlavaProcessor cannot write it"):
        Session(adapter_for(model, processor)).prepare([asked])
