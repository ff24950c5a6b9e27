"""The tokenizer of the tiny pipeline, and a classifier so small that it costs nothing."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "adapter"))

import folders


@pytest.fixture(scope="session")
def tokenizer():
    return folders.tokenizer()
