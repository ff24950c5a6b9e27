import pytest
import wheelhouse

from adapter_llm.fetch import wheels


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of the test's own, which does not exist yet."""
    monkeypatch.setenv("ADAPTER_LLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(cache, monkeypatch):
    """A package index, and downloads that find the wheel there without asking pip, which takes its time."""
    monkeypatch.setattr(wheels, "PAUSE", 0.0)
    monkeypatch.setattr(wheels, "_pip_setting", lambda name: None)
    with wheelhouse.serving() as server:
        monkeypatch.setattr(wheels, "_locate", lambda part: server.wheel_url)
        yield server
