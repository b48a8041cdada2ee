import pytest
from report_runs import QUESTIONS, leave, usual

from tokenprune.tasks.scenes import Scenes


@pytest.fixture(scope="session")
def samples():
    return Scenes(num_samples=QUESTIONS).samples()


@pytest.fixture
def folder(tmp_path, samples):
    return leave(tmp_path / "run", usual(), samples)
