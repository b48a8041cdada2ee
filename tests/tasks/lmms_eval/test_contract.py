"""Benchmarks keep the contract of tasks, where the truth in words is an answer that is right."""

import pytest
from lmms_fixtures import FIXTURES

from tokenprune.testing import TaskContract

pytestmark = [pytest.mark.lmms, pytest.mark.filterwarnings("default")]
HUB = str(FIXTURES / "hub")


class TestPope(TaskContract):
    task, options = "lmms_eval", {"task": "pope", "root": HUB}


class TestGqa(TaskContract):
    task, options = "lmms_eval", {"task": "gqa", "root": HUB}


class TestMme(TaskContract):
    task, options = "lmms_eval", {"task": "mme", "root": HUB}


class TestScienceqa(TaskContract):
    task, options = "lmms_eval", {"task": "scienceqa", "root": HUB}


class TestSeedbench(TaskContract):
    task, options = "lmms_eval", {"task": "seedbench", "root": HUB}


class TestMmmu(TaskContract):
    task, options = "lmms_eval", {"task": "mmmu_val", "root": HUB}

    def test_its_own_answers_are_right(self):
        """The truth is right; lmms-eval draws a letter where it reads none, so that no answer may be, too."""
        task = self.create()
        for sample in task.samples():
            assert task.score(sample, sample.answer) == 1.0
            assert not task.unparsed(sample, sample.answer)
            assert task.unparsed(sample, "") == (len(sample.answer) == 1)  # the others are open questions
