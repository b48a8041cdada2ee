import dataclasses
import subprocess
from pathlib import Path

import torch
from PIL import Image

from tokenprune.core.sample import Sample
from tokenprune.core.turn import Drawn
from tokenprune.pruners.fastv import FastV
from tokenprune.pruners.sparsevlm import SparseVLM
from tokenprune.sweeps import provenance
from tokenprune.tasks.scenes import Scenes


def test_digest_knows_where_a_part_ends():
    assert provenance.digest("ab", "c") != provenance.digest("a", "bc")
    assert len(provenance.digest("a")) == 12


def test_code_hash_follows_the_source(tmp_path, monkeypatch):
    matter = {"report/page.py": False, "pruners/mine.py": False, "pruners/other/part.py": False, "core/a.py": True}
    for name in matter:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("@register_pruner('mine')\na = 1\n" if name.endswith("mine.py") else "a = 1\n")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    before = provenance.code_hash()
    for name, matters in matter.items():
        (tmp_path / name).write_text((tmp_path / name).read_text() + "a = 2\n")
        assert (provenance.code_hash() != before) is matters, name


def test_code_hash_covers_the_parts_of_a_method(monkeypatch):
    before, other, read = provenance.code_hash(SparseVLM), provenance.code_hash(FastV), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"changed" if self.name == "recycle.py" else read(self))
    assert provenance.code_hash(SparseVLM) != before
    assert provenance.code_hash(FastV) == other


def test_code_hash_covers_what_was_used():
    assert provenance.code_hash(Scenes) != provenance.code_hash()


def test_model_hash_sees_weights():
    torch.manual_seed(0)
    model = torch.nn.Linear(50, 50)
    before = provenance.model_hash(model)
    assert provenance.model_hash(model) == before
    with torch.no_grad():
        model.weight += 1e-3
    assert provenance.model_hash(model) != before
    assert provenance.model_hash(torch.nn.Linear(50, 50).to(torch.bfloat16)) != before


def test_data_hash_sees_pixels_and_truth():
    sample = Sample.of(Image.new("RGB", (2, 2)), "?", "a", id="1")
    variants = [
        sample,
        dataclasses.replace(sample, answer="b"),
        dataclasses.replace(sample, turn=Drawn(Image.new("RGB", (2, 2), "red"), "?")),
    ]
    assert len({provenance.data_hash([variant]) for variant in variants}) == 3


def test_git_state_is_the_package_s_or_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    (tmp_path / "version.py").write_text("")
    assert provenance.git_state() is None

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    assert provenance.git_state() is None  # in a repository, but not of it
    git("add", ".")
    git("commit", "-m", "x")
    clean = provenance.git_state()
    assert len(clean) == 40
    (tmp_path / "version.py").write_text("1")
    assert provenance.git_state() == f"{clean}+changes"


def test_versions_and_device():
    assert provenance.versions()["torch"] == torch.__version__.partition("+")[0] or provenance.versions()["torch"]
    assert provenance.device_name(torch.device("cpu")).startswith("cpu (")
