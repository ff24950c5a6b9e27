"""Lets the tests of this folder import their helper, and converts the golden files once for all of them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import originals


@pytest.fixture(scope="session")
def family(golden, tmp_path_factory, request):
    """The originals' files of one family, `request.param`, converted by the project's own converters."""
    if not (golden / request.param / "cases.json").exists():
        pytest.skip(f"no {request.param} data in {golden}")
    return originals.Family(golden, request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session", params=[originals.V2])
def v2(family):
    return family
