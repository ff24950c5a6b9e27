"""One server for all tests that do not change it, and a pipeline that takes every kind of input."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "strangers"))  # hostile files, and servers that send them

import folders
import pytest
from serving import serving

from adapter_llm.pipeline import Pipeline


@pytest.fixture(scope="session")
def everything(tmp_path_factory, decoder):
    """A pipeline that reads texts and sounds, too."""
    folder = tmp_path_factory.mktemp("everything")
    folders.save_weights(folder, decoder, sizes=folders.every_sense())
    return Pipeline.from_pretrained(folder, llm=decoder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def server(everything):
    with serving(everything, name="tiny", max_tokens=24) as running:
        yield running


@pytest.fixture
def client(server):
    pytest.importorskip("openai")
    with server.client() as found:
        yield found
