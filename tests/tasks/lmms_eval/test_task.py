"""The task as far as it goes without lmms-eval: options, refusals, sources, questions, pictures."""

import importlib.metadata
import io

import pytest
from PIL import Image

from tokenprune.core.errors import ConfigError, DataError
from tokenprune.core.options import construct
from tokenprune.tasks.benchmarks import REFUSED
from tokenprune.tasks.lmms_eval import LmmsEval, loading, sources
from tokenprune.tasks.lmms_eval.pictures import Undecoded, decode
from tokenprune.tasks.lmms_eval.question import question_of
from tokenprune.tasks.lmms_eval.scoring import without_reasoning


@pytest.mark.parametrize("task", REFUSED)
def test_refused_tasks_say_why(task):
    with pytest.raises(ConfigError, match=f"{task!r} is refused: .{{20,}}"):
        LmmsEval(task=task)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"num_frames": 1}, "num_frames must be at least 2, got 1"),
        ({"fps": 0.0}, "fps must be above 0"),
        ({"num_frames": None}, "num_frames and task.fps are both null"),
        ({"root": "nowhere"}, "root 'nowhere' is not a folder"),
        ({"prompts": 3}, "prompts must be text, got 3"),
    ],
)
def test_options(options, said):
    with pytest.raises((ConfigError, DataError), match=said):
        construct(LmmsEval, {"task": "pope", **options}, "task")


def installed(monkeypatch, version):
    def answer(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", answer)


def test_without_lmms_eval(monkeypatch):
    installed(monkeypatch, None)
    with pytest.raises(ConfigError, match=r"needs the package lmms-eval.*--no-deps lmms-eval==0\.7\.3"):
        LmmsEval(task="pope").samples()


def test_another_version_says_which_are_tested(monkeypatch):
    installed(monkeypatch, "0.8.0")
    with pytest.raises(ConfigError, match=r"lmms-eval 0\.8\.0 is installed, and only 0\.7\.3 is tested"):
        LmmsEval(task="pope").samples()
    assert sources.check_installed(unchecked=True) == "0.8.0"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of task files, with lmms-eval's own out of the way."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    installed(monkeypatch, "0.7.3")
    (tmp_path / "base_yaml").write_text("dataset_path: a/b\n")
    (tmp_path / "mine.yaml").write_text('include: base_yaml\ntask: "mine"\nprocess_results: !function scores.process\n')
    (tmp_path / "scores.py").write_text("def process(doc, results):\n    return {}\n")
    return tmp_path


def test_a_task_is_found_by_its_name(own):
    assert sources.find_yaml("mine", str(own)) == own / "mine.yaml"
    with pytest.raises(ConfigError, match=r"no task 'mime'; did you mean 'mine'\?"):
        sources.find_yaml("mime", str(own))
    with pytest.raises(ConfigError, match=r"task\.include 'nowhere' is not a folder"):
        sources.find_yaml("mine", "nowhere")


def test_an_unlisted_task_has_to_be_asked_for(own):
    with pytest.raises(ConfigError, match=r"'mine' is not among those that are checked here; task\.unchecked: true"):
        LmmsEval(task="mine", include=str(own)).samples()


@pytest.mark.parametrize("name", ["base_yaml", "mine.yaml", "scores.py"])
def test_the_hash_of_a_task_covers_all_its_files(own, name):
    before = sources.source_hash(own / "mine.yaml")
    (own / "other.py").write_text("")
    assert sources.source_hash(own / "mine.yaml") == before
    (own / name).write_text((own / name).read_text() + "\n# changed\n")
    assert sources.source_hash(own / "mine.yaml") != before


@pytest.mark.parametrize(
    ("source", "asks"),
    [
        ("def process(doc, results):\n    return {'a': 1.0}\n", False),
        ("import requests\ndef process(doc, results):\n    return requests.post('x')\n", True),
        ("from lmms_eval.llm_judge import get_server\ndef ask():\n    return get_server()\n"
         "def process(doc, results):\n    return ask()\n", True),
        ("import openai\nserver = openai.Client()\ndef process(doc, results):\n    return server.ask()\n", True),
        ("import openai\ndef other():\n    return openai.ask()\ndef process(doc, results):\n    return {}\n", False),
    ],
)  # fmt: skip
def test_judges_are_found_where_scoring_reaches_them(tmp_path, source, asks):
    path, scope = tmp_path / "scores.py", {}
    path.write_text(source.replace("import requests\n", "").replace("import openai\n", ""))
    (tmp_path / "scores.py").write_text(source)
    body = source[source.rindex("def process") :]
    exec(compile("\n" * source[: source.rindex("def process")].count("\n") + body, str(path), "exec"), scope)
    assert bool(sources.asks_a_judge(scope["process"])) == asks


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"output_type": "loglikelihood"}, "is of type loglikelihood; only generate_until"),
        ({"generation_kwargs": {"temperature": 0.7}}, "draws its answers at random"),
        ({"generation_kwargs": {"do_sample": True}}, "draws its answers at random"),
        ({"repeats": 4}, "draws its answers at random"),
    ],
)
def test_what_cannot_be_run_is_refused(config, said):
    with pytest.raises(ConfigError, match=said):
        loading.check_config({"task": "mine", **config}, "default", {}, unchecked=False)


def test_prompts_have_to_exist():
    config = {"task": "mine", "lmms_eval_specific_kwargs": {"default": {"post_prompt": ""}, "qwen3_vl": {"format": ""}}}
    loading.check_config(config, "qwen3_vl", {"post_prompt": "x", "format": "y"}, unchecked=False)
    with pytest.raises(ConfigError, match="no prompts 'qwen3'; did you mean 'qwen3_vl'"):
        loading.check_config(config, "qwen3", {}, unchecked=False)
    with pytest.raises(ConfigError, match="no key 'postprompt'; did you mean 'post_prompt'"):
        loading.check_config(config, "default", {"postprompt": ""}, unchecked=False)


@pytest.mark.parametrize(
    ("text", "post", "question"),
    [
        ("Is there a dog?\nAnswer the question using a single word or phrase.", "", "Is there a dog?"),
        ("Is there a dog? Answer:", "", "Is there a dog?"),
        ("Is it?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
         "Answer the question using a single word or phrase.", "", "Is it?"),
        ("What?\nA. x\nB. y\nAnswer with the option's letter from the given choices directly.", "",
         "What?\nA. x\nB. y"),
        ("Context: A hint.\nWhat?\nA. x", "", "A hint.\nWhat?\nA. x"),
        ("Question:What?\nOption:\n(A) x\nOnly give the best option.\n", "", "What?\n(A) x"),
        ("Select the best answer to the following multiple-choice question based on the video.\nWhat?", "", "What?"),
        ("What? Say it.", " Say it.", "What?"),
        ("<image 1> Which?", "", "Which?"),
        ("Who will answer the question?", "", "Who will answer the question?"),
        ("Answer the question using one word.", "", "Answer the question using one word."),
    ],
)  # fmt: skip
def test_questions(text, post, question):
    assert question_of(text, post) == question


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", "yes"),
        ("<think>hm</think> yes", "yes"),
        ("hm</think>yes", "yes"),
        ("<analysis>a</analysis><think>b</think>no", "no"),
        ("<think>without end", "<think>without end"),
    ],
)
def test_reasoning_is_no_answer(text, answer):
    assert without_reasoning(text) == answer


def encoded(form, size=(40, 30), **options):
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_decoded_when_it_is_used(form):
    content = encoded(form)
    picture = Undecoded(content)
    assert (picture.size, picture.mode) == ((40, 30), "RGB")
    assert picture.convert("RGB") is picture
    assert picture._im is None
    assert picture.crop((0, 0, 5, 5)).size == (5, 5)
    assert picture.tobytes() == decode(content).tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()
    assert picture.convert("L").tobytes() == decode(content).convert("L").tobytes()


def test_a_turned_picture_has_its_upright_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded("JPEG", exif=exif)
    assert Undecoded(content).size == decode(content).size == (30, 40)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_truncated_picture_is_found_by_its_end(form):
    with pytest.raises(DataError, match="truncated"):
        Undecoded(encoded(form)[:-20])
    with pytest.raises(DataError, match="no image format"):
        Undecoded(b"hello")
