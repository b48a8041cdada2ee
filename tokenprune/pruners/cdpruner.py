"""CDPruner: a determinantal point process (DPP) over the visual tokens, conditioned on the instruction.

Paper: https://arxiv.org/abs/2506.10967
Code: https://github.com/Theia-4869/CDPruner (Apache-2.0)
Differs:
    - Relevance is scaled within each row; ``relevance_scope="batch"`` scales it over the whole batch and compares every
      row with the texts of all rows, as the code does.
    - Constant relevance gives a plain DPP, and a set larger than the kernel's rank is filled by the lowest indices; the
      code divides by zero there and returns fewer tokens.
    - The kernel is never held whole; the picks are those of the code's loop. Where all tokens are equally relevant, the
      first gains are equal and the lowest index is picked, in the code whichever is largest by rounding.
    - ``kernel_form="exponential"`` is the paper's theta, a comment in the code; its relevance is normalised by its
      largest value, which changes no pick. Kernels other than cosine, scales other than min-max and
      the features of another encoder are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from tokenprune.conditioning.base import Conditioning, Scope, make_conditioning
from tokenprune.core.errors import ConfigError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.dpp import greedy_map
from tokenprune.functional.kernels import KERNELS, KernelMatrix, relevance_quality
from tokenprune.functional.scale import SCALES
from tokenprune.pruners.base import Pruner, check_choice, register_pruner
from tokenprune.pruners.feature_space import OWN, check_space, in_space, space_signals

KernelForm = Literal["relevance", "exponential"]


@register_pruner("cdpruner", paper="https://arxiv.org/abs/2506.10967", idea="diversity")
@dataclass(frozen=True, kw_only=True)
class CDPruner(Pruner):
    """Keeps tokens that are relevant to the instruction and unlike one another, by a conditional DPP.

    Attributes:
        conditioning: where relevance comes from; see ``tokenprune list conditioning``. A name, or a mapping of name and
            options of the conditioning.
        relevance_scope: ``row``: each row by itself; ``batch``: scaled over all rows, as the official code does.
        relevance_scale: how relevance is scaled: ``min_max``, ``softmax`` or ``rank``.
        sign: +1 or -1, whether large or small values of the source are relevant; None for the source's own.
        kernel: similarity S of two tokens; see ``tokenprune list kernels``.
        bandwidth: factor of the bandwidth s of the kernels ``rbf`` and ``laplacian``.
        kernel_form: how relevance r enters the kernel: ``relevance``: r_i S_ij r_j; ``exponential``: exp(alpha r)
            in place of r, alpha = theta / (2 (1 - theta)).
        theta: weight of relevance against diversity in the exponential form, in [0, 1); 0 is a plain DPP.
        features: what S compares: ``own``, or ``timm:<model>`` for the patches of another encoder.
    """

    conditioning: str | Mapping[str, Any] = "auto"
    relevance_scope: Scope = "row"
    relevance_scale: str = "min_max"
    sign: int | None = None
    kernel: str = "cosine"
    bandwidth: float = 1.0
    kernel_form: KernelForm = "relevance"
    theta: float = 0.5
    features: str = OWN

    def __post_init__(self) -> None:
        super().__post_init__()
        make_conditioning(self.conditioning)
        check_choice("relevance_scope", self.relevance_scope, get_args(Scope))
        check_choice("relevance_scale", self.relevance_scale, SCALES)
        check_choice("kernel", self.kernel, KERNELS)
        check_choice("kernel_form", self.kernel_form, get_args(KernelForm))
        check_space(self.features)
        if self.sign not in (None, 1, -1):
            raise ConfigError(f"option 'sign' is {self.sign!r}; allowed: 1, -1, or None for that of the conditioning")
        if not 0 < self.bandwidth < math.inf or (self.bandwidth != 1 and not KERNELS[self.kernel].radial):
            radial = ", ".join(name for name, kernel in KERNELS.items() if kernel.radial)
            raise ConfigError(f"option 'bandwidth' is {self.bandwidth!r}; it must be above 0, and 1 but for {radial}")
        if not 0 <= self.theta < 1:
            raise ConfigError(f"option 'theta' is {self.theta!r}; it must be a number in [0, 1)")

    @property
    def _source(self) -> Conditioning:
        return make_conditioning(self.conditioning)

    @property
    def requires(self) -> frozenset[Signal]:
        """Signals of the conditioning, and of the space of ``features``."""
        return self._source.requires | space_signals(self.features)

    def relevance(self, tokens: VisualTokens) -> Tensor:
        """Scaled relevance of each token, (B, N); higher is more relevant, 0 where a token is not valid.

        Raises:
            SelectionError: if a signal is missing, does not fit, or is not finite.
        """
        sign = self._source.sign_for(tokens) if self.sign is None else self.sign
        raw = sign * self._source.relevance(tokens, self.relevance_scope)
        valid = tokens.valid_or_all
        if self.relevance_scope == "row":
            return SCALES[self.relevance_scale](raw, valid)
        return SCALES[self.relevance_scale](raw.flatten()[None], valid.flatten()[None]).view_as(raw)

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        relevance = self.relevance(tokens)
        quality = relevance_quality(relevance, self.theta if self.kernel_form == "exponential" else None)
        matrix = KernelMatrix.of(in_space(tokens, self.features), self.kernel, quality, tokens.valid, self.bandwidth)
        return TokenSelection.from_order(greedy_map(matrix, k, tokens.valid), tokens.num_tokens)
