"""The walk-through of docs/add_an_adapter.md, run as it stands there, in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs/add_an_adapter.md"
CHECK = """
from tokenprune.testing.checks import check_masking, check_operations
from tokenprune.testing.families.llava import ask
from tokenprune.testing.pruners import Project
from tokenprune.testing.pruners import Within
from tokenprune.testing.families.llava import FAMILIES
from tokenprune.testing.pruners import depthwise
from tiny_vipllava import vipllava
model, processor = vipllava()
assert type(adapter_for(model, processor)) is VipLlavaAdapter
inputs = ask(processor, 1, 2)
plain = model.generate(**inputs, max_new_tokens=5)
with tp.prune(model, processor, Project(), keep_ratio=1.0):
    assert torch.equal(model.generate(**inputs, max_new_tokens=5), plain)
for pruner in (Project(), Project(positions="original"), Within(layers=(1, 3))):
    check_masking(FAMILIES["llava"], model, processor, inputs, pruner, keep_tokens=7)
check_operations(FAMILIES["llava"], model, processor, inputs, depthwise(4, 3, 2), keep_tokens=7)
for pruner in ("divprune", "fastv", "cdpruner"):
    options = {"conditioning": "prompt_embedding"} if pruner == "cdpruner" else {}
    with tp.prune(model, processor, pruner, keep_tokens=7, **options) as trace:
        model.generate(**inputs, max_new_tokens=5)
    assert trace.counts == [(25, 7), (50, 14)]
"""


def test_the_walk_through_works(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 40  # with its imports
    script = tmp_path / "walk.py"
    script.write_text(f"from tokenprune.engine.loading import adapter_for\n{code}\n{CHECK}")
    path = [str(DOCS.parent.parent / "tests"), str(DOCS.parent.parent)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}; exec(open({str(script)!r}).read())"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
