"""Lets the tests of this folder import their helper, `stored`, and the tiny models and the oracle of tests/adapter."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "adapter")]

import stored  # noqa: E402


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A LLaMA in float16, in one file."""
    return stored.save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    """The same LLaMA in several files."""
    return stored.save(tmp_path_factory.mktemp("sharded"), max_shard_size="40KB")
