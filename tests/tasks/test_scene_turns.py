import pytest
import torch

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.turn import only_picture
from tokenprune.embedded.model import load_embedded
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.pruners.base import create_pruner
from tokenprune.tasks.scene_turns import SceneTurns
from tokenprune.tasks.scenes import Scenes


def test_the_second_questions_are_those_of_scenes():
    turns, scenes = SceneTurns(num_samples=12, seed=3).samples(), Scenes(num_samples=12, seed=3).samples()
    for second, alone in zip(turns, scenes, strict=True):
        assert (second.id, second.question, second.answer, second.boxes) == (
            alone.id, alone.question, alone.answer, alone.boxes,
        )  # fmt: skip
        assert only_picture(second.turn).tobytes() == only_picture(alone.turn).tobytes()
        assert second.other_question != second.question
        assert second.earlier == ()
    assert [sample.other_question for sample in turns] != [sample.other_question for sample in scenes]
    longer = SceneTurns(num_samples=13, seed=3).samples()
    assert [s.other_question for s in longer[:12]] == [s.other_question for s in turns]


def test_the_first_question_is_about_the_same_scene():
    """The embedded model answers it as the task says; about another scene it would not."""
    adapter = adapter_for(*load_embedded())
    turns = SceneTurns(num_samples=48, dialogue=True).samples()
    right = {}
    for name, images in (("same", turns), ("another", turns[1:] + turns[:1])):
        first = [
            Sample.of(only_picture(image.turn), *t.earlier[0], id=t.id) for t, image in zip(turns, images, strict=True)
        ]
        answers = Session(adapter).generate(Session(adapter).prepare(first).inputs, max_new_tokens=4).output
        right[name] = sum(Scenes().score(s, a) for s, a in zip(first, answers, strict=True))
    assert right["same"] >= 46
    assert right["another"] <= 24


def test_a_dialogue_is_in_the_prompt_and_the_cache_continues_it():
    """The whole dialogue at once, tokens chosen for the first question, is the second turn on the first one's cache."""
    adapter = adapter_for(*load_embedded())
    model, processor = adapter.model, adapter.processor
    sample = SceneTurns(num_samples=1, dialogue=True).samples()[0]
    ((first, answer),) = sample.earlier
    inputs = Session(adapter).prepare([sample]).inputs
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.index(first.lower().rstrip("?")[:8]) < text.index(answer.lower()) < text.rindex("USER:")
    pruner, k = (
        create_pruner("cdpruner", conditioning={"name": "clip_text", "question": "other"}),
        Budget(keep_tokens=24),
    )
    whole = (
        Session(adapter)
        .generate(Session(adapter).prune_inputs(inputs, pruner, k, samples=[sample]), max_new_tokens=4)
        .output
    )
    start = Session(adapter).prepare([Sample.of(only_picture(sample.turn), first, answer)]).inputs
    with tp.prune(model, processor, "cdpruner", keep_tokens=24):
        ahead = model(**start, use_cache=True)
        out = model.generate(**inputs, **{CACHE: cache_of(ahead)}, max_new_tokens=4, do_sample=False)
    said = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert [said] == whole


def test_without_a_chat_template_earlier_turns_are_refused():
    adapter = adapter_for(*load_embedded())
    sample = SceneTurns(num_samples=1, dialogue=True).samples()[0]
    adapter.processor.chat_template = None
    with pytest.raises(ModelError, match="LlavaProcessor has no chat template, so earlier turns cannot be written"):
        Session(adapter).prepare([sample])
    assert torch.is_tensor(Session(adapter).prepare([Scenes(num_samples=1).samples()[0]]).inputs["input_ids"])
