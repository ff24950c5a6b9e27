"""Lets the tests of this folder import their helper, and converts the golden files once for all of them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import originals


@pytest.fixture(scope="session")
def family(golden, tmp_path_factory, request):
    """The originals' files of one family, `request.param`, converted by the project's own converters."""
    needed = ["cases.json", "io.safetensors", "llama/7B/params.json", "llama/tokenizer.model"]
    needed += ["../imagebind/imagebind_small.pth"] if request.param == originals.IMAGEBIND_LLM else []
    for name in needed:
        if not (golden / request.param / name).exists():
            pytest.skip(f"no {request.param}/{name} in {golden}")
    return originals.Family(golden, request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session", params=[originals.V2])
def v2(family):
    return family
