"""The ways to run a greedy loop; all return the same picks, up to the rounding of gains that are nearly equal."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tokenprune.functional.lazy import Criterion, lazy_greedy
from tokenprune.functional.steps import stepwise_greedy

Loop = Callable[[Criterion, Tensor, Tensor, int], Tensor]

LOOPS: dict[str, Loop] = {"blocks": lazy_greedy, "steps": stepwise_greedy}
