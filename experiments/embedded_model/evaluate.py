"""Whether the embedded MLLM answers, and whether it looks: ``python experiments/embedded_model/evaluate.py``.

Accuracy on held-out scenes, by type of question, under conditions that a model which has only learned the prior of the
answers would not tell apart:

- ``model``: as it is;
- ``gray``: a gray picture instead of the scene;
- ``shuffled``: the picture of another question;
- ``evidence_dropped``: without the visual tokens that show what the question is about, and no others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from tokenprune.core.budget import Budget
from tokenprune.core.sample import Sample
from tokenprune.core.selection import TokenSelection
from tokenprune.core.steps import Positions
from tokenprune.core.tokens import VisualTokens
from tokenprune.embedded.model import WEIGHTS, load_embedded
from tokenprune.embedded.scenes import GRID, IMAGE_SIZE
from tokenprune.engine.loading import session_for
from tokenprune.engine.session import Session
from tokenprune.functional.evidence import evidence_tokens
from tokenprune.pruners.base import Pruner
from tokenprune.tasks.scenes import Scenes

BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Without(Pruner):
    """Drops given visual tokens of a single image."""

    dropped: frozenset[int]
    positions: Positions = "original"

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        keep = [index for index in range(tokens.num_tokens) if index not in self.dropped]
        return TokenSelection(torch.tensor([keep]), tokens.num_tokens)


def answer(session: Session, samples: Sequence[Sample]) -> list[str]:
    """Answers of the unpruned model."""
    answers = []
    for start in range(0, len(samples), BATCH):
        prepared = session.prepare(samples[start : start + BATCH])
        answers += session.generate(prepared.inputs, max_new_tokens=4).output
    return answers


@torch.no_grad()
def answer_without_evidence(session: Session, samples: Sequence[Sample]) -> list[str]:
    """Answers when exactly the tokens on the asked objects are missing."""
    answers = []
    for sample in samples:
        prepared = session.prepare([sample])
        total = session.adapter.spec.visual_tokens
        gone = frozenset(evidence_tokens(sample.boxes, sample.image.size, (GRID, GRID)))
        pruned = session.prune_inputs(prepared.inputs, Without(dropped=gone), Budget(keep_tokens=total - len(gone)))
        answers += session.generate(pruned.inputs, max_new_tokens=4).output
    return answers


def accuracy(task: Scenes, samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
    """Share of right answers, over all and by type."""
    groups: dict[str, list[float]] = {"all": []}
    for sample, text in zip(samples, answers, strict=True):
        score = task.score(sample, text)
        groups["all"].append(score)
        groups.setdefault(sample.kind, []).append(score)
    return {name: round(sum(scores) / len(scores), 4) for name, scores in groups.items()}


def evaluate(num_samples: int) -> dict[str, dict[str, float]]:
    """Accuracy under each condition, on the test split."""
    session = session_for(*load_embedded())
    task = Scenes(split="test", num_samples=num_samples)
    samples = task.samples()
    gray = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (128, 128, 128))
    others = samples[1:] + samples[:1]
    seen = [sample for sample in samples if sample.boxes]
    conditions: dict[str, tuple[list[Sample], Callable[[Session, Sequence[Sample]], list[str]]]] = {
        "model": (samples, answer),
        "gray": ([replace(sample, image=gray) for sample in samples], answer),
        "shuffled": ([replace(a, image=b.image) for a, b in zip(samples, others, strict=True)], answer),
        "evidence_dropped": (seen, answer_without_evidence),
    }
    return {name: accuracy(task, asked, ask(session, asked)) for name, (asked, ask) in conditions.items()}


def main() -> None:
    """Entry point: prints the accuracies and writes them beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=3000, help="questions")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "accuracy.json")
    arguments = parser.parse_args()
    result = {"num_samples": arguments.num_samples, "accuracy": evaluate(arguments.num_samples)}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
