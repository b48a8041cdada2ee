"""A task of an installed package is found by its entry point."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

TASK = Path(__file__).parents[1] / "outside" / "task.py"


def test_a_task_of_another_package(tmp_path):
    shutil.copy(TASK, tmp_path / "two_colors.py")
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tokenprune.tasks]\ntwo_colors = two_colors\n")
    code = "from tokenprune.tasks.base import TASKS; print(TASKS.entry('two_colors').summary)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "Pictures of one color.", done.stderr
