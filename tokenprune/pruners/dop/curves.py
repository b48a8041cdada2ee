"""Curves: the divergence from the unpruned model when one parameter of a policy is varied alone.

Paper: Fine-grained Token Allocation Via Operation Pruning for Efficient MLLMs, https://arxiv.org/abs/2507.02909.

Differs: that the paper samples sparsely and interpolates is known, but not how. Ours: the measurements are made
monotone (isotonic regression), then interpolated by monotone cubic pieces (PCHIP), which do not overshoot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from tokenprune.core.errors import ConfigError

ROUNDING = 1e-4  # how far below 0 a divergence of half-precision outputs may come out


@dataclass(frozen=True)
class Curve:
    """A curve: divergence over one parameter of a policy.

    Attributes:
        points: as measured: value of the parameter to divergence, nats, by rising value. At ``full`` it is 0 and need
            not be given.
        full: the value at which nothing is pruned.

    Raises:
        ConfigError: if a value is not an integer from 0 to ``full``, a divergence is negative or not finite, or that at
            ``full`` is not 0.
    """

    points: Mapping[int, float]
    full: int

    def __post_init__(self) -> None:
        if type(self.full) is not int or self.full < 0:
            raise ConfigError(f"a curve must end at an integer of at least 0, got {self.full!r}")
        for value, divergence in self.points.items():
            if type(value) is not int or not 0 <= value <= self.full:
                raise ConfigError(f"a curve has a point at {value!r}; allowed: integers from 0 to {self.full}")
            if not math.isfinite(divergence) or divergence < -ROUNDING:
                raise ConfigError(f"a curve has the divergence {divergence!r} at {value}; it cannot be below 0")
        if abs(self.points.get(self.full, 0.0)) > ROUNDING:
            raise ConfigError(
                f"a curve has the divergence {self.points[self.full]!r} at {self.full}, where nothing is pruned; "
                "it must be 0"
            )
        object.__setattr__(self, "points", {value: float(self.points[value]) for value in sorted(self.points)})

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """(full + 1,) divergence at 0, 1, ..., full: never rising, 0 at the end.

        Below the smallest value that was measured nothing is known; there it is infinite, so that no search ends there.
        """
        values = np.full(self.full + 1, np.inf)
        measured = {**self.points, self.full: 0.0}
        if len(measured) > 1:
            knots = np.array(list(measured))
            heights = np.maximum(list(measured.values()), 0.0)
            falling = isotonic_regression(heights, increasing=False).x
            inside = np.arange(knots[0], self.full + 1)
            with np.errstate(over="ignore"):  # of the inverse of a slope that is next to nothing
                between = PchipInterpolator(knots, falling)(inside)
            values[inside] = np.minimum.accumulate(between.clip(0, falling[0]))  # flat pieces waver in the last bit
        values[self.full] = 0
        values.setflags(write=False)
        return values


@dataclass(frozen=True)
class Curves:
    """The curves of all parameters of a policy, see ``of``.

    Attributes:
        attention: over the depth of attention.
        mlp: over the depth of the MLP; it ends at layers - 1, as the last layer's MLP is dead.
        tokens: over the number of visual tokens that enter the LLM.
        query: over the depth of the queries, for policies of three depths; it ends at layers - 1.
        update_only: how attention is pruned, see ``Depths``; if so, the last layer's attention is dead as well, and its
            curve ends at layers - 1.

    Raises:
        ConfigError: if the ends contradict each other, or ``query`` is given with ``update_only``.
    """

    attention: Curve
    mlp: Curve
    tokens: Curve
    query: Curve | None = None
    update_only: bool = False

    def __post_init__(self) -> None:
        if self.update_only and self.query is not None:
            raise ConfigError("a curve over query has no meaning with update_only")
        ends = {"attention": self.layers - self.update_only, "query": self.layers - 1}
        for name, end in ends.items():
            curve = getattr(self, name)
            if curve is not None and curve.full != end:
                raise ConfigError(
                    f"the curve over {name} ends at {curve.full}, but that over mlp, which ends at {self.mlp.full}, "
                    f"asks for {end}"
                )

    @classmethod
    def of(
        cls,
        layers: int,
        visual_tokens: int,
        *,
        attention: Mapping[int, float],
        mlp: Mapping[int, float],
        tokens: Mapping[int, float],
        query: Mapping[int, float] | None = None,
        update_only: bool = False,
    ) -> Curves:
        """Curves of measurements on one model.

        Args:
            layers: decoder layers of the LLM.
            visual_tokens: visual tokens before pruning.
            attention: from the depth of attention to divergence, nats, all else unpruned.
            mlp: from the depth of the MLP, 0 to ``layers`` - 1, to divergence, nats.
            tokens: from the number of visual tokens to divergence, nats.
            query: from the depth of the queries, 0 to ``layers`` - 1, to divergence, nats.
            update_only: see ``Depths``.

        Raises:
            ConfigError: if a measurement cannot be.
        """
        return cls(
            _curve("attention", attention, layers - update_only),
            _curve("mlp", mlp, layers - 1),
            _curve("tokens", tokens, visual_tokens),
            None if query is None else _curve("query", query, layers - 1),
            update_only,
        )

    @property
    def layers(self) -> int:
        """Layers of the LLM."""
        return self.mlp.full + 1

    @property
    def visual_tokens(self) -> int:
        """Visual tokens before pruning."""
        return self.tokens.full

    def to_mapping(self) -> dict[str, Curve]:
        """The curves that were measured, by their names."""
        named = {"attention": self.attention, "query": self.query, "mlp": self.mlp, "tokens": self.tokens}
        return {name: curve for name, curve in named.items() if curve is not None}


def _curve(name: str, points: Mapping[int, float], full: int) -> Curve:
    try:
        return Curve(points, full)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
