"""Fixtures: policies as a fit would find them."""

import pytest
from fitted_policies import CASES, SPEC, fitted


@pytest.fixture(params=CASES)
def policy(request):
    return fitted(**CASES[request.param])


@pytest.fixture
def two_depths():
    return fitted()


@pytest.fixture
def spec():
    return SPEC
