"""A third party's tests, in files of their own and without this repository's settings, are those of docs/testing.md."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MINE = """
from tokenprune.testing.families.llava import tiny_llava as tiny_model
from tokenprune.testing.families.llava import tiny_processor
"""
TASK = '''
from dataclasses import dataclass

from PIL import Image

from tokenprune.core.sample import Sample
from tokenprune.tasks.base import Task, register_task


@register_task("squares")
@dataclass(frozen=True, kw_only=True)
class Squares(Task):
    """Asks for the colour of a square."""

    num_samples: int = 8

    def samples(self):
        colors = ("red", "blue", "green")
        asked = [(str(number), colors[number % 3]) for number in range(self.num_samples)]
        square = (32, 32)
        return [Sample.of(Image.new("RGB", square, color), "what color is it ?", color, id=id) for id, color in asked]
'''


def blocks(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.S)


def test_their_files_are_all_it_takes(tmp_path):
    (tmp_path / "large_norm.py").write_text(blocks("CONTRIBUTING.md")[0])
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "my_task.py").write_text(TASK)
    for number, block in enumerate(blocks("docs/testing.md")):
        (tmp_path / f"test_{number}.py").write_text(block)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "error", "-m", "not full"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 80
