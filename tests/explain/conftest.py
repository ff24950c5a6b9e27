"""Lets the tests of this folder import the helpers of others, and gives them the pipeline of tests/pipeline."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / name) for name in ("adapter", "decoder", "pipeline"))]

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
