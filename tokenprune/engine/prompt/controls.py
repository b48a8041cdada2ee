"""What controls read off the samples that prompts were made of: another question, and where the evidence is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.signals import Signal
from tokenprune.core.steps import Selector
from tokenprune.engine.prompt.encoded import Encoded
from tokenprune.functional.evidence import evidence_tokens

OWN = "own"


def check_samples(selectors: Iterable[Selector], samples: Sequence[Sample]) -> None:
    """Raise ModelError unless the samples of a task have what the controls among some pruners need."""
    for selector in selectors:
        if Signal.EVIDENCE in selector.requires and not any(sample.boxes for sample in samples):
            raise ModelError(
                "conditioning oracle needs a task that says where in the image the evidence is; try scenes"
            )
        question_of(selector, [], samples)


def question_of(
    selector: Selector, questions: Sequence[str] | None, samples: Sequence[Sample] | None
) -> Sequence[str] | None:
    """The questions to which a pruner measures relevance: those given, or the others that the samples come with.

    Raises:
        ModelError: if it wants others, and there are none.
    """
    if getattr(selector, "relevance_question", OWN) == OWN:
        return questions
    others = [sample.other_question for sample in samples or ()]
    if not others or not all(others):
        raise ModelError("relevance_question 'other' needs a task whose samples come with another question; try scenes")
    return others


@dataclass(frozen=True)
class Evidence:
    """EVIDENCE of a batch whose rows show a whole picture each.

    Attributes:
        samples: one a batch row.
    """

    samples: tuple[Sample, ...]

    def __call__(self, encoded: Encoded) -> Tensor:
        """(T,) in the order of the placeholders: 1 at tokens that show what is asked about, else 0.

        Raises:
            ModelError: if rows are parts of pictures, so that it is not known what they show.
        """
        layout = encoded.layout
        if None in layout.row_grids():
            raise ModelError("conditioning oracle needs prompts of one image whose visual tokens are one grid")
        found = torch.zeros(len(encoded.features), dtype=torch.float32, device=encoded.features.device)
        for tokens, grid, row in zip(layout.units, layout.grids, layout.rows.tolist(), strict=True):
            sample = self.samples[row]
            shown = evidence_tokens(sample.boxes, sample.image.size, grid) if grid else []
            found[tokens[torch.tensor(shown, dtype=torch.long, device=tokens.device)].to(found.device)] = 1
        return found
