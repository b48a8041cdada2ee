"""A kernel: the square of the cosine, which is positive semi-definite as products of such kernels are."""

import torch

from tokenprune.functional.kernels import Kernel, register_kernel


@register_kernel("squared_cosine")
class SquaredCosine(Kernel):
    """Square of the cosine."""

    def points(self, features, valid):
        unit = torch.nn.functional.normalize(features.float(), dim=-1)
        return unit, unit.new_ones(unit.shape[:-1])

    def block(self, x, y, factor):
        return (x @ y.mT).square()
