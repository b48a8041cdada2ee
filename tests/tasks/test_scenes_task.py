from collections import Counter

import pytest

from tokenprune.embedded.questions import QUESTION_TYPES
from tokenprune.errors import ConfigError
from tokenprune.tasks.scenes import Scenes


def content(sample):
    return sample.id, sample.question, sample.answer, sample.kind, sample.boxes, sample.image.tobytes()


def test_a_longer_set_begins_with_the_shorter_one():
    short, long = Scenes(num_samples=7).samples(), Scenes(num_samples=20).samples()
    assert [content(s) for s in short] == [content(s) for s in long[:7]]


def test_seeds_and_splits_draw_other_scenes():
    drawn = {
        (seed, split): {s.image.tobytes() for s in Scenes(seed=seed, split=split, num_samples=12).samples()}
        for seed in (0, 1)
        for split in ("test", "validation")
    }
    assert len(set.union(*drawn.values())) == 48


def test_balanced_over_the_types():
    kinds = Counter(s.kind for s in Scenes(num_samples=60).samples())
    assert kinds == dict.fromkeys(QUESTION_TYPES, 10)


def test_no_question_can_be_answered_without_the_image():
    samples = Scenes(num_samples=600).samples()
    for kind in QUESTION_TYPES:
        answers = Counter(s.answer for s in samples if s.kind == kind)
        assert answers.most_common(1)[0][1] <= 0.6 * sum(answers.values()), kind


def test_boxes_show_what_is_asked():
    for sample in Scenes(num_samples=60).samples():
        assert bool(sample.boxes) == (sample.answer not in ("no", "0"))
        for x0, y0, x1, y1 in sample.boxes:
            assert 0 <= x0 < x1 <= 96
            assert 0 <= y0 < y1 <= 96


def test_score():
    task = Scenes(num_samples=6)
    sample = next(s for s in task.samples() if s.kind == "letter")
    assert task.score(sample, f"  {sample.answer.lower()}. ") == 1.0
    assert task.score(sample, sample.answer + sample.answer) == 0.0
    assert task.score(sample, "") == 0.0


def test_needs_a_sample():
    with pytest.raises(ConfigError, match="num_samples"):
        Scenes(num_samples=0)
