"""Benchmarks as lmms-eval finds them."""

from lmms_fixtures import golden, hf_home, hub  # noqa: F401
