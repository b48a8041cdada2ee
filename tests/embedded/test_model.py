import json

import pytest
import torch

from tokenprune import load_embedded
from tokenprune.embedded.model import WEIGHTS
from tokenprune.embedded.questions import QUESTION_TYPES
from tokenprune.embedded.train import STAGES
from tokenprune.engine.session import Session
from tokenprune.tasks.scenes import Scenes


def test_weights_are_small_and_sizes_are_as_promised():
    assert sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file()) <= 16 * 2**20
    model, processor = load_embedded()
    assert model.config.image_seq_length >= 144
    assert model.config.text_config.num_hidden_layers >= 6
    assert not model.training
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert processor.image_token_id == model.config.image_token_id


def test_clip_and_llava_share_the_vision_tower():
    from transformers import CLIPModel

    model, clip = load_embedded()[0], CLIPModel.from_pretrained(WEIGHTS / "clip", dtype="float32")
    ours, paired = model.model.vision_tower.state_dict(), clip.vision_model.state_dict()
    assert all(torch.equal(value, paired[key]) for key, value in ours.items())


def test_recipe_is_the_one_that_was_run():
    lines = [json.loads(line) for line in (WEIGHTS / "training_log.jsonl").read_text().splitlines()]
    last = {line["stage"]: line["step"] for line in lines}
    assert last == {name: stage.steps for name, stage in STAGES.items()}


def test_recorded_accuracy_meets_the_bar_and_falls_without_the_evidence():
    recorded = json.loads((WEIGHTS / "accuracy.json").read_text())
    accuracy = recorded["accuracy"]
    assert recorded["num_samples"] >= 1000
    assert accuracy["model"]["all"] >= 0.9
    assert min(accuracy["model"][kind] for kind in QUESTION_TYPES) >= 0.8
    for condition in ("gray", "shuffled", "evidence_dropped"):
        assert accuracy[condition]["all"] < accuracy["model"]["all"] - 0.3


def test_it_answers_as_well_here_and_now():
    from tokenprune.engine.loading import adapter_for

    task = Scenes(split="test", num_samples=120, seed=7)
    adapter, samples = adapter_for(*load_embedded()), task.samples()
    prepared = Session(adapter).prepare(samples)
    answers = Session(adapter).generate(prepared.inputs, max_new_tokens=4).output
    scores = {kind: [] for kind in QUESTION_TYPES}
    for sample, answer in zip(samples, answers, strict=True):
        scores[sample.kind].append(task.score(sample, answer))
    assert sum(map(sum, scores.values())) / 120 >= 0.9
    assert min(sum(hits) / len(hits) for hits in scores.values()) == pytest.approx(1, abs=0.2)
