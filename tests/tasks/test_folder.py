import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from tokenprune.cli.main import app
from tokenprune.core.errors import ConfigError, DataError
from tokenprune.core.turn import only_picture
from tokenprune.tasks.folder import Folder

CONFIGS = Path(__file__).parents[2] / "configs"


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
    assert only_picture(first.turn).mode == "RGB"
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


def test_what_is_0_or_empty_is_not_missing(folder):
    """0, false and nothing are the same to ``or``, and not to a user."""
    path = write(folder, *(ROW | {"id": number, "kind": number, "answer": number} for number in range(3)))
    assert [(s.id, s.kind, s.answer) for s in Folder(path=path).samples()] == [(x, x, x) for x in ("0", "1", "2")]
    rows = "".join(f"a.png,?,{number},{number},{number}\n" for number in range(3))
    path = write(folder, "image,question,answer,id,kind\n" + rows, name="questions.csv")
    assert [(s.id, s.kind, s.answer) for s in Folder(path=path).samples()] == [(x, x, x) for x in ("0", "1", "2")]
    path = write(folder, *(ROW | {"id": name, "kind": name} for name in (None, "")))
    assert [(s.id, s.kind) for s in Folder(path=path).samples()] == [("1", ""), ("2", "")]  # the lines


def test_each_sample_knows_where_it_is_written(folder):
    path = write(folder, ROW | {"id": "x"}, "\n", ROW | {"id": "y"})
    assert [sample.place for sample in Folder(path=path).samples()] == [f"{path} line 1", f"{path} line 3"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_files_of_other_systems(folder, start, end):
    text = end.join(["image,question,answer", 'a.png,"Two\nlines?",red', "", "a.png,Why?,no", ""])
    path = write(folder, "", name="q.csv")
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(start + text)
    assert [(s.id, s.question) for s in Folder(path=path).samples()] == [("3", "Two\nlines?"), ("5", "Why?")]
    path = write(folder, "")
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(start + end.join([json.dumps(ROW), "", json.dumps(ROW)]))
    assert [(s.id, s.question) for s in Folder(path=path).samples()] == [("1", "What color?"), ("3", "What color?")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW | {"answer": False}, "'answer' must be text or a number, got false"),
        (ROW | {"answer": ["red", "blue"]}, """'answer' must be text or a number, got ["red", "blue"]"""),
        (ROW | {"answer": {"text": "red"}}, "'answer' must be text or a number, got {"),
        (ROW | {"answer": float("nan")}, "'answer' must be text or a number, got NaN"),
        (ROW | {"id": False}, "'id' must be text or a number, got false"),
        (ROW | {"id": [1]}, "'id' must be text or a number, got [1]"),
        (ROW | {"kind": True}, "'kind' must be text or a number, got true"),
        (ROW | {"answer": None}, "'answer' is missing or empty"),
        (ROW | {"question": "What \ud800?"}, "'question' holds half a character"),
        (ROW | {"image": "none.png"}, "none.png' does not exist"),
        (ROW | {"image": "questions.jsonl"}, "is in no image format that Pillow reads"),
        (ROW | {"question": "<image>\nWhat color?"}, "'question' has '<image>'; leave it out, the image comes before"),
        (ROW | {"question": "What color?\n<image>"}, "'question' has '<image>'; leave it out"),
        (ROW | {"question": "<video>What color?"}, "'question' has '<video>'; leave it out"),
        (json.dumps(ROW)[:-1] + ', "answer": "blue"}\n', "is not JSON: a key occurs twice"),
        ('{"answer": ' + "9" * 5000 + "}\n", "is not JSON: Exceeds the limit"),
        ("[" * 100_000 + "\n", "is not JSON"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(folder, row, message):
    with pytest.raises(DataError, match=r"questions\.jsonl line 2") as error:
        Folder(path=write(folder, ROW, row)).samples()
    assert message in str(error.value)


def test_ids_that_are_written_in_two_ways(folder):
    with pytest.raises(DataError, match=r"line 2: id '1' occurs twice"):
        Folder(path=write(folder, ROW | {"id": 1}, ROW | {"id": "1"})).samples()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,question,answer\na.png,?\n", "line 2: 'answer' is missing or empty"),
        ("image,question,answer\na.png,?,red,blue\n", "line 2: more cells than there are in the first line"),
        ("image,question,answer,answer\na.png,?,red,blue\n", "line 1: column 'answer' occurs twice"),
        ("image,question,answer,\na.png,?,red,\n", "line 2: unknown key ''"),
        ("a.png,?,red\na.png,?,blue\n", "line 2: unknown key 'a.png'"),
        ('image,question,answer\na.png,?,red\na.png,"?" x,red\n', "line 3 is not CSV"),
        ("image,question,answer\n", "holds no questions"),
        ("", "holds no questions"),
        ("image,question,answer\na.png,<image> what?,red\n", "line 2: 'question' has '<image>'"),
    ],
)
def test_bad_csv(folder, text, message):
    with pytest.raises(DataError, match=r"questions\.csv") as error:
        Folder(path=write(folder, text, name="questions.csv")).samples()
    assert message in str(error.value)


@pytest.mark.parametrize("question", ["<image>\nis there a star ?", "is <image> a star ?", "is there a star ? </s>"])
@pytest.mark.parametrize(
    ("config", "command"),
    [
        ("quickstart", ["run"]),
        ("quickstart", ["sweep"]),
        ("quickstart", ["sweep", "--dry-run"]),
        ("bench", ["bench", "batch_sizes=[2]"]),
        ("fit_policy", ["fit-policy", "samples=2"]),
    ],
)
def test_what_a_model_cannot_be_asked_is_named_before_it_loads(folder, monkeypatch, config, command, question):
    monkeypatch.setattr("tokenprune.engine.loading.Checkpoint.load", lambda self: pytest.fail("the model was loaded"))
    path = write(folder, ROW, ROW | {"question": question})
    asked = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    asked |= {"task": {"name": "folder", "path": path}, "output": str(folder / "output")}
    (folder / "config.yaml").write_text(yaml.safe_dump(asked))
    name, *options = command
    result = CliRunner().invoke(app, [name, str(folder / "config.yaml"), *options])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"tokenprune: {path} line 2: ")
    assert "leave it out" in result.stderr
    assert result.stderr.count("\n") == 1
