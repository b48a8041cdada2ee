"""Benchmarks as lmms-eval finds them: data sets by hub ids, and videos in HF_HOME, which is read once in a process."""

import json
import shutil
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures" / "lmms"


@pytest.fixture(scope="session", autouse=True)
def hf_home(tmp_path_factory):
    """A place for caches, with the videos; set before anything imports datasets."""
    home = tmp_path_factory.mktemp("hf") / "home"
    shutil.copytree(FIXTURES / "hf_home", home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield home


@pytest.fixture(scope="session")
def hub():
    """The data sets by their hub ids."""
    return FIXTURES / "hub"


@pytest.fixture(scope="session")
def golden():
    """What lmms-eval itself makes of answers, by task."""
    return json.loads((FIXTURES / "golden.json").read_text())["tasks"]


@pytest.fixture
def own_hub(tmp_path):
    """Copies the data set of a task, to be damaged; returns the folder that holds it."""

    def copy(dataset):
        shutil.copytree(FIXTURES / "hub" / dataset, tmp_path / "hub" / dataset)
        return tmp_path / "hub"

    return copy
