"""Benchmarks of lmms-eval that are checked here, what their tables say, and those that are refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from tokenprune.tasks import readings


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is known of one of lmms-eval's tasks.

    Attributes:
        task: its name in lmms-eval.
        title: for tables.
        primary: metric of lmms-eval that papers print.
        scale: factor from that metric to the published number: 100 from a share to a percentage.
        media: what its rows show.
        read: what an answer is taken to say, to find unreadable ones; None if any text is an answer.
        open_answers: whether rows whose truth cannot be read so take any text.
        unit: fields of a row whose equal values make rows one unit in tests; none, and each row is its own.
        unit_modulo: the unit is the first field's value modulo this number.
        unit_rows: how many rows each unit must have for the metric; None for any number.
        whole: rows of a unit count together in the metric, so parts of the set hold whole ones.
        kind: field by whose values accuracy is reported, too; empty for none.
        packages: that the task imports, beside those of the extra ``eval``.
    """

    task: str
    title: str
    primary: str
    scale: float = 100.0
    media: Literal["image", "images", "video"] = "image"
    read: Callable[[str], str | None] | None = None
    open_answers: bool = False
    unit: tuple[str, ...] = ()
    unit_modulo: int | None = None
    unit_rows: int | None = None
    whole: bool = False
    kind: str = ""
    packages: tuple[str, ...] = ()

    def unit_of(self, row: Mapping[str, Any]) -> str:
        """The unit of a row; empty if it is its own, or lacks a field."""
        if any(field not in row for field in self.unit):
            return ""
        if self.unit_modulo is not None:
            return str(int(row[self.unit[0]]) % self.unit_modulo)
        return "/".join(str(row[field]) for field in self.unit)


def _pope(suffix: str, title: str) -> Benchmark:
    return Benchmark(
        task=f"pope{suffix}",
        title=f"POPE F1{title}",
        primary="pope_f1_score",
        read=readings.yes_no_lmms_eval,
        unit=("image_source",),
        kind="category",
    )


def _letters(task: str, title: str, primary: str, **fields: Any) -> Benchmark:
    return Benchmark(task=task, title=title, primary=primary, read=readings.letter_plain, **fields)


def _mvbench(part: str) -> Benchmark:
    title = f"MVBench {part.replace('_', ' ')}"
    return _letters(f"mvbench_{part}", title, "mvbench_accuracy", scale=1.0, media="video", unit=("video",))


MVBENCH = (
    "action_antonym",
    "action_count",
    "action_localization",
    "action_prediction",
    "action_sequence",
    "character_order",
    "counterfactual_inference",
    "egocentric_navigation",
    "episodic_reasoning",
    "fine_grained_action",
    "fine_grained_pose",
    "moving_attribute",
    "moving_count",
    "moving_direction",
    "object_existence",
    "object_interaction",
    "object_shuffle",
    "scene_transition",
    "state_change",
    "unexpected_action",
)

_LISTED = (
    _pope("", ""),
    _pope("_adv", " adversarial"),
    _pope("_pop", " popular"),
    _pope("_random", " random"),
    Benchmark(task="gqa", title="GQA", primary="exact_match", unit=("imageId",)),
    Benchmark(
        task="mme",
        title="MME perception",
        primary="mme_perception_score",
        scale=1.0,
        read=readings.yes_no_mme_lmms_eval,
        unit=("category", "question_id"),
        unit_rows=2,
        whole=True,
        kind="category",
    ),
    _letters(
        "mmbench_en_dev_static",
        "MMBench en dev",
        "gpt_eval_score",
        scale=1.0,
        unit=("index",),
        kind="category",
        unit_modulo=1_000_000,
        whole=True,
    ),
    _letters("scienceqa_img", "ScienceQA image", "exact_match", kind="subject"),
    _letters("scienceqa", "ScienceQA", "exact_match", kind="subject"),
    Benchmark(task="textvqa_val", title="TextVQA val", primary="exact_match", unit=("image_id",)),
    Benchmark(task="vizwiz_vqa_val", title="VizWiz val", primary="exact_match", kind="category"),
    Benchmark(task="vqav2_val", title="VQAv2 val", primary="exact_match", unit=("image_id",), kind="answer_type"),
    _letters("seedbench", "SEED-Bench", "seed_all", media="images", unit=("data_id",), kind="data_type"),
    _letters("ai2d", "AI2D", "exact_match"),
    Benchmark(task="chartqa", title="ChartQA", primary="relaxed_overall", kind="type"),
    Benchmark(task="docvqa_val", title="DocVQA val ANLS", primary="anls", unit=("docId",)),
    Benchmark(task="infovqa_val", title="InfoVQA val ANLS", primary="anls"),
    Benchmark(task="ocrbench", title="OCRBench", primary="ocrbench_accuracy", scale=1000.0, kind="question_type"),
    _letters("mmmu_val", "MMMU val", "mmmu_acc", media="images", open_answers=True),
    _letters("mmstar", "MMStar", "average", kind="category"),
    _letters("realworldqa", "RealWorldQA", "exact_match", open_answers=True),
    *map(_mvbench, MVBENCH),
    _letters(
        "videomme",
        "Video-MME",
        "videomme_perception_score",
        scale=1.0,
        media="video",
        unit=("videoID",),
        kind="duration",
    ),
    _letters("egoschema_subset", "EgoSchema subset", "score", media="video", unit=("video_idx",)),
    _letters(
        "longvideobench_val_v",
        "LongVideoBench val",
        "lvb_acc",
        media="video",
        unit=("video_path",),
        kind="question_category",
        packages=("decord",),
    ),
    _letters(
        "mlvu_dev", "MLVU dev", "mlvu_percetion_score", scale=1.0, media="video", unit=("video_name",), kind="task_type"
    ),
    _letters("nextqa_mc_test", "NExT-QA MC test", "exact_match", media="video", unit=("video",), kind="type"),
)

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({each.task: each for each in _LISTED})

_JUDGE = "a language model behind an API judges its answers, which no journal can score again"
_SUBMISSION = "its answers are not public, so it only writes a file to submit"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("mmvet", "llava_in_the_wild", "mathverse", "mathverse_testmini", "activitynetqa"), _JUDGE),
        "mmbench_en_dev": "where it reads no letter it asks a judge or guesses; use mmbench_en_dev_static",
        "egoschema": "it sends the answers to a public server; use egoschema_subset",
        **dict.fromkeys(
            (
                "vqav2_test",
                "textvqa_test",
                "vizwiz_vqa_test",
                "docvqa_test",
                "infovqa_test",
                "mmbench_en_test",
                "mmmu_test",
            ),
            _SUBMISSION,
        ),
    }
)
