"""Fixtures: policies as a fit would find them."""

from fitted_policies import policy, spec, two_depths

__all__ = ["policy", "spec", "two_depths"]
