"""What the tests of conversion share: a tokenizer of LLaMA's kind, and bases in Meta's layout."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import meta_models


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory):
    """A tokenizer.model, and the number of its pieces."""
    return meta_models.train_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", 300)


@pytest.fixture
def base(tmp_path, sentencepiece_model):
    """Write a random model in Meta's layout; returns the folder and its tensors before they were cut."""

    def make(name="base", shards=1, **options):
        model, pieces = sentencepiece_model
        return meta_models.write_base(tmp_path / name, model, rows=pieces, shards=shards, **options)

    return make
