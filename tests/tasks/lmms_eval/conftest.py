"""Benchmarks as lmms-eval finds them."""

from lmms_fixtures import golden, hf_home, hub, own_hub  # noqa: F401
