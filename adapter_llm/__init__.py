"""Eyes and ears for LLaMA-family language models.

Importing this package loads neither torch nor transformers; each name below brings in what it needs when it
is first used.
"""

from importlib import import_module

_HOME = {
    "AdapterLLM": "model",
    "AdapterLLMConfig": "config",
    "AdapterState": "adapter",
    "CheckpointError": "sources",
    "FetchError": "fetch",
    "GenerationOptions": "results",
    "Pipeline": "pipeline",
    "Result": "results",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
