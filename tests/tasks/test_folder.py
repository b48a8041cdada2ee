import json

import pytest
from PIL import Image

from tokenprune.errors import ConfigError, DataError
from tokenprune.tasks.folder import Folder


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return tmp_path


def write(folder, *rows, name="questions.jsonl"):
    path = folder / name
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


ROW = {"image": "a.png", "question": "What color?", "answer": "red"}


def test_jsonl(folder):
    path = write(folder, ROW, "\n", ROW | {"image": "b.png", "id": "x", "kind": "color", "answer": 3})
    first, second = Folder(path=path).samples()
    assert (first.id, first.question, first.answer, first.kind) == ("1", "What color?", "red", "")
    assert (second.id, second.answer, second.kind) == ("x", "3", "color")
    assert first.image.mode == "RGB"
    assert first.boxes == ()


def test_csv(folder):
    path = write(folder, 'image,question,answer\na.png,"What, exactly?",red\n', name="questions.csv")
    (sample,) = Folder(path=path).samples()
    assert sample.question == "What, exactly?"
    assert sample.id == "2"  # the line, as an editor counts


def test_num_samples_reads_no_further(folder):
    path = write(folder, ROW, ROW | {"image": "missing.png"})
    assert len(Folder(path=path, num_samples=1).samples()) == 1
    with pytest.raises(DataError, match=r"missing\.png"):
        Folder(path=path).samples()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png", "question": "?"}, "line 1: 'answer' is missing"),
        (ROW | {"question": "  "}, "line 1: 'question' is missing or empty"),
        (ROW | {"qestion": "?"}, "unknown key 'qestion'; did you mean 'question'"),
        ("{", "line 1 is not JSON"),
        ("[1]\n", "line 1 must be an object"),
        ("", "holds no questions"),
        (json.dumps(ROW | {"id": "1"}) + "\n" + json.dumps(ROW | {"id": "1"}), "line 2: id '1' occurs twice"),
    ],
)
def test_bad_rows(folder, row, message):
    with pytest.raises(DataError, match=r"questions\.jsonl") as error:
        Folder(path=write(folder, row)).samples()
    assert message in str(error.value)


def test_not_text(folder):
    (folder / "q.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        Folder(path=str(folder / "q.jsonl")).samples()


def test_bad_options(folder):
    with pytest.raises(DataError, match="does not exist"):
        Folder(path=str(folder / "none.jsonl"))
    with pytest.raises(ConfigError, match="must end in"):
        Folder(path=str(folder / "a.png"))
    with pytest.raises(ConfigError, match="at least 1"):
        Folder(path=write(folder, ROW), num_samples=0)
