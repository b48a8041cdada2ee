"""Every task keeps the contract."""

import json

import pytest
from PIL import Image

from tokenprune.tasks.base import TASKS
from tokenprune.testing import TaskContract


class TestScenes(TaskContract):
    task, options = "scenes", {"num_samples": 12}


class TestSceneTurns(TaskContract):
    task, options = "scene_turns", {"num_samples": 12}


class TestDialogue(TaskContract):
    task, options = "scene_turns", {"num_samples": 12, "dialogue": True}


class TestFolder(TaskContract):
    task = "folder"

    @pytest.fixture(autouse=True)
    def questions(self, tmp_path):
        rows = [{"image": "a.png", "question": f"Is it {color}?", "answer": "no"} for color in ("red", "blue", "green")]
        Image.new("RGB", (8, 8), "white").save(tmp_path / "a.png")
        path = tmp_path / "questions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.options = {"path": str(path)}


def test_all_tasks_are_here():
    elsewhere = {"lmms_eval"}  # whose cases need an environment of their own
    assert {case.task for case in TaskContract.__subclasses__()} >= {*TASKS.names()} - elsewhere
