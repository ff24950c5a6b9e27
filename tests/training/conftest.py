"""The tiny weights and decoder folders of tests/pipeline, and a classifier so small that it costs nothing."""

import sys
from pathlib import Path

import pytest

for helpers in ("pipeline", "adapter"):
    sys.path.insert(0, str(Path(__file__).parent.parent / helpers))

import folders  # noqa: E402

from adapter_llm.pipeline import Pipeline  # noqa: E402


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    folders.save_decoder(folder)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory, decoder):
    folder = tmp_path_factory.mktemp("weights")
    folders.save_weights(folder, decoder)
    return folder


@pytest.fixture(scope="session")
def pipe(weights, decoder):
    return Pipeline.from_pretrained(weights, llm=decoder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def tokenizer():
    return folders.tokenizer()
