"""Where the evidence is: the truth that some tasks know, for controls."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.signals import Evidence
from tokenprune.core.steps import Selector
from tokenprune.core.turn import picture_size
from tokenprune.engine.providers.base import provides
from tokenprune.engine.providers.encoding import Encoding, other_questions
from tokenprune.functional.evidence import evidence_tokens


def boxes(signal: Evidence, view: Encoding) -> Hashable:
    """Where the samples say that the evidence is, on which the signal depends."""
    return tuple(sample.boxes for sample in view.samples or ())


@provides(Evidence, depends=boxes)
def evidence(signal: Evidence, view: Encoding) -> Tensor:
    """Evidence (T,): 1 at tokens that show what is asked about, else 0.

    Raises:
        ModelError: if there are no samples, or rows are parts of pictures, so that it is not known what they show.
    """
    layout, samples = view.encoded.layout, view.samples
    if samples is None:
        raise ModelError("the signal evidence needs the samples that the prompts were made of; give samples=")
    if None in layout.row_grids():
        raise ModelError("conditioning oracle needs prompts of one image whose visual tokens are one grid")
    found = torch.zeros(len(view.encoded.features), dtype=torch.float32, device=view.encoded.features.device)
    for tokens, grid, row in zip(layout.units, layout.grids, layout.rows.tolist(), strict=True):
        size = picture_size(samples[row].turn)
        shown = evidence_tokens(samples[row].boxes, size, grid) if grid and size else []
        found[tokens[torch.tensor(shown, dtype=torch.long, device=tokens.device)].to(found.device)] = 1
    return found


def check_samples(selectors: Iterable[Selector], samples: Sequence[Sample]) -> None:
    """Raise ModelError unless the samples of a task have what the controls among some pruners need."""
    for selector in selectors:
        signals = [each for signal in selector.requires for each in signal.alternatives]
        if Evidence() in signals and not any(sample.boxes for sample in samples):
            raise ModelError(
                "conditioning oracle needs a task that says where in the image the evidence is; try scenes"
            )
        if any(getattr(signal, "question", "own") == "other" for signal in signals):
            other_questions(samples)
