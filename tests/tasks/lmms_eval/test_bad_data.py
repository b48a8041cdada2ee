"""What is wrong with a data set is one sentence, before a model loads."""

import io

import pytest
from PIL import Image

from tokenprune.core.errors import ConfigError, DataError
from tokenprune.tasks.lmms_eval import LmmsEval

pytestmark = [pytest.mark.lmms, pytest.mark.filterwarnings("default")]
POPE, MME, VIDEOS = "lmms-lab-encoder/POPE", "lmms-lab-encoder/MME", "OpenGVLab/MVBench"


def parquet(hub, dataset):
    return next((hub / dataset).rglob("data/*.parquet"))


def edit(path, change):
    """Write a parquet file again with its rows changed."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    rows = change(table.to_pylist())
    names = [name for name in table.schema.names if name in rows[0]]
    schema = pyarrow.schema([table.schema.field(name) for name in names], table.schema.metadata)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)


def refuse(said, hub=None, kind=DataError, **options):
    with pytest.raises(kind, match=said) as caught:
        LmmsEval(**{"root": str(hub) if hub else None, **options}).samples()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_missing_data_set(tmp_path):
    refuse(rf"root '.*' has no folder '{POPE}', which lmms-eval task 'pope' needs", tmp_path, task="pope")


def test_missing_data_set_without_a_root():
    refuse(rf"data set '{POPE}' of lmms-eval task 'pope': \w+", task="pope")


def test_missing_column(own_hub):
    hub = own_hub(POPE)
    edit(parquet(hub, POPE), lambda rows: [{k: v for k, v in row.items() if k != "question"} for row in rows])
    refuse(rf"data set '{POPE}' of lmms-eval task 'pope' lacks 'question'", hub, task="pope")


def test_a_damaged_file(own_hub):
    hub = own_hub(POPE)
    path = parquet(hub, POPE)
    path.write_bytes(path.read_bytes()[:-100])
    refuse(rf"data set '{POPE}' of lmms-eval task 'pope': ", hub, task="pope")


def test_a_changed_file_is_read_again(own_hub):
    hub = own_hub(POPE)
    before = LmmsEval(task="pope", root=str(hub)).samples()
    edit(parquet(hub, POPE), lambda rows: [row | {"question": "Is it new?"} for row in rows])
    after = LmmsEval(task="pope", root=str(hub)).samples()
    assert {sample.question for sample in before} != {"Is it new?"} == {sample.question for sample in after}


def test_changed_pictures_of_gqa_are_read_again(own_hub):
    """It loads its pictures as a second data set, which names no cache."""
    hub = own_hub("lmms-lab-encoder/GQA")
    before = LmmsEval(task="gqa", root=str(hub)).samples()
    white = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(white, "PNG")
    (path,) = (hub / "lmms-lab-encoder/GQA/testdev_balanced_images").glob("*.parquet")
    edit(path, lambda rows: [row | {"image": {"bytes": white.getvalue(), "path": None}} for row in rows])
    after = LmmsEval(task="gqa", root=str(hub)).samples()
    assert {sample.turn.shape for sample in after} == {(("image", (32, 32)),)}
    assert {sample.turn.shape for sample in before} == {(("image", (96, 96)),)}


def cut(content):
    return content[: len(content) // 2]


def spoil(hub, change):
    """Change the third picture; the first is opened by lmms-eval itself."""

    def changed(rows):
        rows[2]["image"]["bytes"] = change(rows[2]["image"]["bytes"])
        return rows

    edit(parquet(hub, POPE), changed)


def test_truncated_picture(own_hub):
    hub = own_hub(POPE)
    spoil(hub, cut)
    refuse(r"row 2, column 'image' of lmms-eval task 'pope' holds no picture: it is truncated", hub, task="pope")


def test_damage_that_only_decoding_finds(own_hub):
    hub = own_hub(POPE)
    png = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(png, "PNG")
    broken = bytearray(png.getvalue())
    broken[60:160] = bytes(100)
    spoil(hub, lambda content: bytes(broken))
    sample = LmmsEval(task="pope", root=str(hub)).samples()[2]
    with pytest.raises(DataError, match=r"row 2 of lmms-eval task 'pope' holds no picture: it is damaged"):
        sample.turn.parts()


def test_half_a_pair(own_hub):
    hub = own_hub(MME)
    edit(parquet(hub, MME), lambda rows: rows[1:])
    refuse("'mme' needs 2 rows of each category/question_id, and 'existence/existence/0000.png' has 1", hub, task="mme")


def test_half_a_pair_of_answers(hub):
    task = LmmsEval(task="mme", root=str(hub))
    with pytest.raises(DataError, match=r"mme_perception_score of 'mme': .*pairwise"):
        task.metrics([(sample, "yes") for sample in task.samples()[1:]])


def test_missing_video(hub, hf_home):
    clips = list(hf_home.rglob("clip0.mp4"))
    away = [clip.rename(clip.with_suffix(".away")) for clip in clips]
    try:
        refuse(r"video '.*clip0\.mp4' does not exist", hub, task="mvbench_action_antonym")
        refuse(r"row 0 of lmms-eval task 'videomme'|data set.*videomme.*clip0", hub, task="videomme")
    finally:
        for path in away:
            path.rename(path.with_suffix(".mp4"))


def test_a_missing_package(hub):
    refuse("needs the package 'decord', which is not installed", hub, ConfigError, task="longvideobench_val_v")


def test_an_unknown_task_has_a_near_name(hub):
    refuse("lmms-eval has no task 'popee'; did you mean 'pope'?", hub, ConfigError, task="popee")


def test_an_unlisted_judged_task(hub):
    options = {"task": "llava_wilder_small", "unchecked": True}
    refuse("may ask a judge or a server for scores: .*(get_|GPT|openai)|needs the package", hub, ConfigError, **options)


def test_parts_of_a_set(hub):
    def rows(task, **options):
        return [sample.row for sample in LmmsEval(task=task, root=str(hub), **options).samples()]

    assert rows("pope", num_samples=5) == [0, 1, 2, 3, 4]
    assert rows("mme", num_samples=3) == [0, 1, 2, 3]  # pairs are whole
    assert rows("pope", num_samples=100) == list(range(24))
    drawn = rows("pope", num_samples=6, sample_seed=1)
    assert drawn == rows("pope", num_samples=6, sample_seed=1) != rows("pope", num_samples=6, sample_seed=2)
    assert drawn == sorted(drawn)
    units = [sample.unit for sample in LmmsEval(task="pope", root=str(hub)).samples()]
    chosen = {units[row] for row in drawn}
    assert drawn == [row for row, unit in enumerate(units) if unit in chosen]  # pictures with all their questions
    circles = LmmsEval(task="mmbench_en_dev_static", root=str(hub), num_samples=1).samples()
    assert len(circles) > 1
    assert {sample.unit for sample in circles} == {circles[0].unit}


def test_prompts_and_fingerprint(hub):
    usual = LmmsEval(task="pope", root=str(hub))
    bare = LmmsEval(task="pope", root=str(hub), prompt={"post_prompt": ""})
    short = LmmsEval(task="pope", root=str(hub), prompts="plm")
    assert bare.samples()[0].turn.text == bare.samples()[0].question == usual.samples()[0].question
    assert short.samples()[0].turn.text.endswith("concise.")
    assert len({task.fingerprint() for task in (usual, bare, short)}) == 3
    assert usual.fingerprint() == LmmsEval(task="pope", root=str(hub)).fingerprint()
    assert len({task.samples()[0].turn.digest for task in (usual, bare, short)}) == 3


def test_nothing_of_lmms_eval_stays_behind(hub):
    from PIL import ImageFile

    assert LmmsEval(task="pope", root=str(hub)).samples()
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
