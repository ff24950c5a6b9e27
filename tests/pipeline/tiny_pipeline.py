"""A tiny weights folder, its decoder and their pipeline, made once for all tests that ask for them.

A plugin of tests/conftest.py. What is heavy is imported where it is needed: most tests ask for none of this.
"""

import pytest


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    import folders

    folder = tmp_path_factory.mktemp("decoder")
    folders.save_decoder(folder)
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory, decoder):
    """A weights folder, float32, and the model it was saved from."""
    import folders

    folder = tmp_path_factory.mktemp("weights")
    return folder, folders.save_weights(folder, decoder)


@pytest.fixture(scope="session")
def weights(saved):
    return saved[0]


@pytest.fixture(scope="session")
def pipe(weights, decoder):
    from adapter_llm.pipeline import Pipeline

    return Pipeline.from_pretrained(weights, llm=decoder, device="cpu", dtype="float32")
