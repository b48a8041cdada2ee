from collections import Counter

import numpy as np
import pytest

from tokenprune.core.errors import ConfigError
from tokenprune.core.turn import only_picture
from tokenprune.embedded.questions import QUESTION_TYPES
from tokenprune.tasks.scenes import Scenes


def content(sample):
    shown = sample.boxes, only_picture(sample.turn).tobytes()
    return sample.id, sample.question, sample.answer, sample.kind, sample.other_question, *shown


def test_a_longer_set_begins_with_the_shorter_one():
    short, long = Scenes(num_samples=7).samples(), Scenes(num_samples=20).samples()
    assert [content(s) for s in short] == [content(s) for s in long[:7]]


def test_seeds_and_splits_draw_other_scenes():
    drawn = {
        (seed, split): {s.turn.digest for s in Scenes(seed=seed, split=split, num_samples=12).samples()}
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


def test_the_other_question_is_another_and_of_any_type():
    samples = Scenes(num_samples=300).samples()
    assert all(sample.other_question != sample.question for sample in samples)
    starts = Counter(sample.other_question.split()[0] for sample in samples if sample.kind == "letter")
    assert starts.keys() >= {"Is", "What", "How", "Where"}
    assert [s.other_question for s in Scenes(num_samples=12, seed=1).samples()] != [
        s.other_question for s in samples[:12]
    ]


def test_a_coarse_picture_lacks_detail_and_nothing_else():
    fine, coarse = (Scenes(num_samples=12, image_scale=scale).samples() for scale in (1.0, 0.25))
    for a, b in zip(fine, coarse, strict=True):
        assert content(a)[:-1] == content(b)[:-1]
        left, right = (np.asarray(only_picture(s.turn)).astype(float) for s in (a, b))
        assert left.shape == right.shape
        blocks = [x.reshape(24, 4, 24, 4, 3).mean((1, 3)) for x in (left, right)]
        assert np.abs(blocks[0] - blocks[1]).mean() < 4  # what a quarter of the sides can show stays
        edges = [np.abs(np.diff(x, axis=0)).mean() for x in (left, right)]
        assert edges[1] < 0.6 * edges[0]
    for wrong in (0.0, 1.5):
        with pytest.raises(ConfigError, match=rf"image_scale must be above 0 and at most 1, got {wrong}"):
            Scenes(image_scale=wrong)


def test_score():
    task = Scenes(num_samples=6)
    sample = next(s for s in task.samples() if s.kind == "letter")
    assert task.score(sample, f"  {sample.answer.lower()}. ") == 1.0
    assert task.score(sample, sample.answer + sample.answer) == 0.0
    assert task.score(sample, "") == 0.0


def test_needs_a_sample():
    with pytest.raises(ConfigError, match="num_samples"):
        Scenes(num_samples=0)
