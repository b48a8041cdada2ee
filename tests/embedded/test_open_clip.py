import json

import pytest
import torch
from safetensors.torch import load_file

from tokenprune.core.budget import Budget
from tokenprune.embedded.model import WEIGHTS, load_embedded
from tokenprune.embedded.open_clip import write
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.pruners.base import create_pruner
from tokenprune.tasks.scenes import Scenes
from tokenprune.towers.text.base import load_text_tower


def test_what_ships_is_what_the_command_writes(tmp_path):
    write(tmp_path)
    shipped = WEIGHTS / "open_clip"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in shipped.iterdir()}
    for name in ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((shipped / name).read_text())
    ours, theirs = (load_file(folder / "open_clip_model.safetensors") for folder in (tmp_path, shipped))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def towers():
    adapter = adapter_for(*load_embedded())
    return adapter, {kind: load_text_tower(adapter.model, adapter.text_tower, kind) for kind in ("clip", "open_clip")}


def test_both_libraries_embed_alike(towers):
    _, found = towers
    questions = [sample.question for sample in Scenes(num_samples=24).samples()]
    assert len(set(questions)) > 12
    long = " ".join(questions)  # several segments
    for question in (*questions, long):
        ids = [tower.tokenize(question).tolist() for tower in found.values()]
        assert ids[0] == ids[1]
    texts = [tower.embed_text([*questions, long]) for tower in found.values()]
    torch.testing.assert_close(*texts, atol=1e-4, rtol=1e-4)
    hidden = torch.randn(3, 144, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(*(tower.project(hidden) for tower in found.values()), atol=1e-4, rtol=1e-4)


def test_cdpruner_keeps_the_same_tokens(towers):
    adapter, _ = towers
    prepared = Session(adapter).prepare(Scenes(num_samples=24).samples())
    keeps = []
    for conditioning in ("clip_text", "open_clip_text"):
        pruner = create_pruner("cdpruner", conditioning=conditioning)
        pruned = Session(adapter).prune_inputs(prepared.inputs, pruner, Budget(keep_tokens=24), prepared.questions)
        keeps.append(pruned.selection.keep)
    assert torch.equal(*keeps)
