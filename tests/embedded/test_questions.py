import random
from collections import Counter

import pytest

from tokenprune.embedded.questions import QUESTION_TYPES, all_questions, article, plural, sample_questions
from tokenprune.embedded.scenes import SceneObject, sample_layout
from tokenprune.embedded.tokenizer import VOCABULARY, build_tokenizer

LAYOUT = (
    SceneObject("red", "circle", "K", (0, 0), (12, 12), 10),
    SceneObject("red", "star", None, (1, 1), (36, 36), 9),
    SceneObject("orange", "square", None, (3, 3), (84, 84), 9),
)


def test_every_answer_by_hand():
    told = {
        q.text: (q.answer, q.objects) for q in all_questions(LAYOUT, random.Random(0)) if q.answer not in {"no", "0"}
    }
    assert told == {
        "Where is the red circle?": ("top left", (0,)),
        "Where is the red star?": ("center", (1,)),
        "Where is the orange square?": ("bottom right", (2,)),
        "What color is the circle?": ("red", (0,)),
        "What color is the star?": ("red", (1,)),
        "What color is the square?": ("orange", (2,)),
        "What shape is the orange thing?": ("square", (2,)),  # not asked of red: two things are red
        "What letter is on the red circle?": ("K", (0,)),
        "How many things are there?": ("3", (0, 1, 2)),
        "How many circles are there?": ("1", (0,)),
        "How many stars are there?": ("1", (1,)),
        "How many squares are there?": ("1", (2,)),
        "How many red things are there?": ("2", (0, 1)),
        "How many orange things are there?": ("1", (2,)),
        "Is there a red circle?": ("yes", (0,)),
        "Is there a red star?": ("yes", (1,)),
        "Is there an orange square?": ("yes", (2,)),
    }


def test_no_means_no():
    rng = random.Random(1)
    for _ in range(200):
        layout = sample_layout(rng, "train")
        have = {f"{o.color} {o.shape}" for o in layout}
        for question in all_questions(layout, rng):
            if question.type == "existence":
                name = " ".join(question.text.rstrip("?").split()[-2:])
                assert (name in have) == (question.answer == "yes")


def test_types_are_balanced_and_questions_not_repeated():
    rng = random.Random(2)
    kinds: Counter[str] = Counter()
    for _ in range(300):
        questions = sample_questions(sample_layout(rng, "train"), rng, 6)
        kinds.update(q.type for q in questions)
        for kind in QUESTION_TYPES:
            asked = [q.text for q in questions if q.type == kind]
            assert len(set(asked)) >= min(len(asked), 1)
    assert kinds["existence"] == pytest.approx(kinds["position"], rel=0.2)


def test_words():
    assert (article("orange"), article("red"), plural("cross"), plural("star")) == ("an", "a", "crosses", "stars")
    tokenizer = build_tokenizer()
    rng = random.Random(0)
    for _ in range(100):
        for question in all_questions(sample_layout(rng, "train"), rng):
            ids = tokenizer(f"USER: <image>\n{question.text} ASSISTANT: {question.answer}").input_ids
            assert VOCABULARY["<unk>"] not in ids
            assert ids[:3] == [VOCABULARY[token] for token in ("<s>", "USER:", "<image>")]
    closed = build_tokenizer(append_eos=True)("a red circle").input_ids
    assert closed[-1] == VOCABULARY["</s>"] != 2
