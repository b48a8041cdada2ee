"""Sweeps over turns of several pictures, of text alone and of files that are opened when they are asked about."""

import json
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from tokenprune.core.errors import DataError
from tokenprune.core.registry import Entry
from tokenprune.core.sample import Sample
from tokenprune.core.turn import Drawn
from tokenprune.engine.loading import find_checkpoint
from tokenprune.engine.session import Session
from tokenprune.sweeps import evaluate, runner
from tokenprune.sweeps.config import parse_config
from tokenprune.sweeps.progress import blocks_of
from tokenprune.tasks import images
from tokenprune.tasks.base import TASKS, Task
from tokenprune.testing.checkpoints import save_llava
from tokenprune.testing.pictures import picture


@dataclass(frozen=True)
class Told:
    """A turn of any parts in memory."""

    held: tuple

    @property
    def shape(self):
        return tuple(("image", part.size) for part in self.held if not isinstance(part, str))

    @property
    def text(self):
        return "\n".join(part for part in self.held if isinstance(part, str))

    @property
    def length(self):
        return len(self.text)

    @property
    def digest(self):
        return repr([part if isinstance(part, str) else part.tobytes() for part in self.held])

    def parts(self):
        return self.held


TURNS = {
    "one": (picture(1), "where ?"),
    "two": (picture(1), "is it", picture(2), "the same ?"),
    "none": ("where is a star ?",),
    "last": ("where ?", picture(3)),
    "nothing": ("is there a star in the sky ?",),
}


@pytest.fixture
def mixed(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Mixed(Task):
        """Turns of all kinds."""

        only: str = ""

        def samples(self):
            return [Sample(n, Told(p), f"about {n} ?") for n, p in TURNS.items() if self.only in ("", n)]

    TASKS.names()
    monkeypatch.setitem(TASKS._entries, "mixed_turns", Entry("mixed_turns", Mixed, "", None))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture
def config(checkpoint, tmp_path):
    def make(**changes):
        values = {
            "model": {"name": "llava", "path": checkpoint},
            "pruner": {"name": "fastv", "layer": 1},
            "budget": {"keep_tokens": 5},
            "baselines": ["uniform"],
            "batch_size": 4,
            "max_new_tokens": 3,
            "timing_repeats": 1,
            "output": str(tmp_path / "runs"),
        }
        return parse_config(values | changes)

    return make


def lines(outcome):
    return [json.loads(line) for line in outcome.folder.samples.path.read_text().splitlines()]


def test_turns_of_all_kinds_are_answered(config, mixed, monkeypatch):
    batches, ask = [], evaluate.Evaluator.ask

    def spy(self, samples, cells):
        batches.append([sample.id for sample in samples])
        return ask(self, samples, cells)

    monkeypatch.setattr(evaluate.Evaluator, "ask", spy)
    outcome = runner.run(config(task={"name": "mixed_turns"}))
    assert not outcome.failed
    found = lines(outcome)
    assert Counter(line["sample"] for line in found) == dict.fromkeys(TURNS, 4)
    tokens = {line["sample"]: line["visual_tokens"] for line in found}
    image = tokens["one"]
    assert tokens == {"one": image, "two": 2 * image, "last": image, "none": 0, "nothing": 0}
    text = {"none", "nothing"}
    assert all(set(batch) <= text or not text & set(batch) for batch in batches)
    for line in found:
        if line["sample"] in text:
            assert line["grid"] is None
            assert line["text_tokens"] > 0
            assert all(stage["tokens"] == 0 for stage in line["stages"])
    uniform = outcome.records[2]
    assert uniform.metrics["kept_tokens"] == (5 + 10 + 5) / 5
    assert uniform.metrics["visual_tokens"] == 4 * image / 5
    whole = outcome.records[0].metrics
    alone = runner.run(config(task={"name": "mixed_turns", "only": "one"})).records[0].metrics
    assert whole["vision_flops"] == pytest.approx(3 * alone["vision_flops"] / 5)


def test_text_alone_is_answered_as_the_model_alone_answers(config, mixed, checkpoint):
    outcome = runner.run(config(task={"name": "mixed_turns"}))
    answers = {line["answer"] for line in lines(outcome) if line["sample"] == "none"}
    session = find_checkpoint(checkpoint).load()
    ids = session.adapter.processor.tokenizer("USER: where is a star ? ASSISTANT:", return_tensors="pt")
    new = session.adapter.model.generate(**ids, do_sample=False, max_new_tokens=3)[:, ids["input_ids"].shape[1] :]
    assert answers == {session.adapter.processor.tokenizer.decode(new[0], skip_special_tokens=True).strip()}


def test_the_order_of_parts_is_that_of_the_prompt(checkpoint):
    session = find_checkpoint(checkpoint).load()
    inputs = session.prepare([Sample("two", Told(TURNS["two"]), "?")]).inputs
    visual = session.adapter.placeholders(inputs["input_ids"])[0].long()
    assert int((visual.diff() == 1).sum()) + int(visual[0]) == 2  # text between the two pictures
    assert len(inputs["pixel_values"]) == 2
    other = session.prepare([Sample("two", Told(TURNS["two"][2:]), "?")]).inputs
    assert torch.equal(inputs["pixel_values"][1:], other["pixel_values"])


def test_a_task_of_text_alone_is_refused(config, mixed):
    with pytest.raises(DataError, match="no question of Mixed shows a picture or a video, so there is nothing"):
        runner.run(config(task={"name": "mixed_turns", "only": "none"}))


def test_batches_are_of_one_kind_by_size_and_length():
    large, small = (Image.new("RGB", (side, side)) for side in (9, 8))
    asked = [(large, "b"), (None, "long one"), (small, "long"), (small, "s"), (large, "a"), (None, "x"), (small, "zz")]
    samples = [Sample(text, Drawn(image, text), text) for image, text in asked]
    blocks = [[sample.id for sample in block] for block in blocks_of(samples, 2)]
    assert blocks == [["x", "long one"], ["s", "zz"], ["long", "b"], ["a"]]


@pytest.fixture
def folder(tmp_path):
    rows = []
    for number in range(6):
        picture(number, 64, 48).save(tmp_path / f"{number}.jpg")
        rows.append({"image": f"{number}.jpg", "question": f"is it {'very ' * number}red ?", "answer": "no"})
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "folder", "path": str(tmp_path / "q.jsonl")}


def test_no_picture_is_decoded_before_the_first_batch(config, folder, monkeypatch):
    events, load, prepare = [], images.load_image, Session.prepare

    def decoding(path):
        events.append(path.name)
        return load(path)

    def batch(self, samples):
        events.append("batch")
        return prepare(self, samples)

    monkeypatch.setattr(images, "load_image", decoding)
    monkeypatch.setattr(Session, "prepare", batch)
    runner.run(config(task=folder, timing_repeats=0))
    assert events[:7] == ["batch", "0.jpg", "1.jpg", "2.jpg", "3.jpg", "batch", "4.jpg"]


def test_a_picture_that_turns_out_damaged_stops_and_loses_nothing(config, folder, tmp_path):
    damaged = tmp_path / "5.jpg"
    picture(5, 64, 48).save(damaged, "PNG")
    whole = damaged.read_bytes()
    half = len(whole) // 2
    damaged.write_bytes(whole[:half] + bytes(40) + whole[half + 40 :])  # its header and its end are right
    with pytest.raises(DataError, match=r"5\.jpg' is damaged"):
        runner.run(config(task=folder))
    (journal,) = (tmp_path / "runs").glob("*/samples.jsonl")
    answered = [json.loads(line)["sample"] for line in journal.read_text().splitlines()]
    assert Counter(answered) == dict.fromkeys("1234", 4)
    assert not (journal.parent / "results.jsonl").read_text()


@pytest.mark.parametrize("orientation", [1, 6])
def test_sizes_are_of_the_upright_picture(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    turn = images.PictureFile.of(tmp_path / "a.jpg", "?")
    assert turn.shape == (("image", turn.parts()[0].size),)
    assert turn.parts()[0].size == ((30, 20) if orientation == 1 else (20, 30))
