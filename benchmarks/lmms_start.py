"""What 1,000 pictures of a benchmark cost before the first batch: seconds and memory beyond those of the loaded set.

.eval/bin/python benchmarks/lmms_start.py

Rows in POPE's schema with drawn pictures of 640 x 480 in JPEG, through lmms-eval's task ``pope``.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow

ROWS = 1000
MEASURED = """
import resource, sys, time
from tokenprune.sweeps.progress import blocks_of
from tokenprune.sweeps.provenance import data_hash
from tokenprune.tasks.lmms_eval import LmmsEval
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
task = LmmsEval(task="pope", root=sys.argv[1])
task.fingerprint()  # imports, and rows from parquet to the cache
before, start = used(), time.perf_counter()
samples = tuple(task.samples())
data_hash(samples)
blocks_of(samples, 32)
print(time.perf_counter() - start, used() - before)
"""
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test-*\n---\n"
TEXTS = ("id", "question_id", "question", "answer", "image_source", "category")


def write(folder: Path) -> None:
    """Write the data set."""
    rng, rows = np.random.default_rng(0), []
    for number in range(ROWS):
        pixels = np.kron(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
        file = io.BytesIO()
        Pillow.fromarray(pixels).save(file, "JPEG", quality=85)
        text = {"id": str(number), "question_id": str(number), "question": "Is there a dog?", "answer": "yes"}
        text |= {"image_source": f"COCO_{number // 6}", "category": "random"}
        rows.append(text | {"image": {"bytes": file.getvalue(), "path": None}})
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    features = Features({**{name: Value("string") for name in TEXTS}, "image": Image()})
    Dataset.from_list(rows, features=features).to_parquet(str(folder / "data/test-00000-of-00001.parquet"))


def main() -> None:
    """Print the cost."""
    with tempfile.TemporaryDirectory() as root:
        write(Path(root) / "lmms-lab-encoder/POPE")
        out = subprocess.run([sys.executable, "-c", MEASURED, root], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, out.stdout.split())
    print(f"{ROWS} samples: {seconds:.2f} s, {megabytes:.0f} MB above the loaded set")


if __name__ == "__main__":
    main()
