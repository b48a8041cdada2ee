"""Time and memory of what a sweep does with a ``folder`` task before its first batch: headers, hashes, order.

python benchmarks/folder_start.py --pictures 1000 --width 640 --height 480
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

MEASURED = """
import resource, sys, time
from tokenprune.sweeps.progress import blocks_of
from tokenprune.sweeps.provenance import data_hash
from tokenprune.tasks.folder import Folder
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = used(), time.perf_counter()
samples = tuple(Folder(path=sys.argv[1]).samples())
data_hash(samples)
blocks_of(samples, 32)
print(time.perf_counter() - start, used() - before)
"""


def make_pictures(folder: Path, number: int, size: tuple[int, int]) -> Path:
    """Write JPEG pictures of noise and a gradient, about as large as photographs, and the file of questions."""
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 200, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
    rows = []
    for index in range(number):
        noise = rng.integers(0, 56, smooth.shape)
        Image.fromarray((smooth + noise).astype(np.uint8)).save(folder / f"{index}.jpg", quality=75)
        rows.append({"image": f"{index}.jpg", "question": f"what is {index} ?", "answer": "noise"})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def main() -> None:
    """Print seconds, megabytes above those of the imports, and the size of the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("pictures", 1000), ("width", 640), ("height", 480)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = make_pictures(Path(folder), options.pictures, (options.width, options.height))
        stored = sum(file.stat().st_size for file in Path(folder).glob("*.jpg")) / 2**20
        out = subprocess.run([sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, out.stdout.split())
    print(f"{options.pictures} JPEG of {options.width} x {options.height}, {stored:.0f} MB on disk: ", end="")
    print(f"{seconds:.2f} s, {megabytes:.0f} MB")


if __name__ == "__main__":
    main()
