"""A pruner inside the LLM whose every property can be chosen, for tests of the mechanism."""

import dataclasses

from tokenprune.core.signals import Signal
from tokenprune.core.stages import Stage
from tokenprune.pruners.base import ScorePruner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Within(ScorePruner):
    """Keeps what the last token attends to, at the layers given, by equal shares."""

    layers: tuple[int, ...] = (2,)
    positions: str = "original"
    own: bool = False

    @property
    def scoring_layer(self):
        return "own" if self.own else "previous"

    @property
    def requires(self):
        return frozenset({Signal.TEXT_ATTENTION})

    def stages(self, spec):
        return tuple(Stage(layer) for layer in self.layers)

    def counts(self, spec, keep, total):
        number = len(self.layers)
        return tuple(round(total * (keep / total) ** (step / number)) for step in range(1, number + 1))

    def score(self, tokens):
        return tokens.signals[Signal.TEXT_ATTENTION].mean(1)[:, -1]
