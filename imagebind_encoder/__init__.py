"""Seven modalities into one embedding space: an independent implementation of ImageBind.

Importing this package loads neither torch nor an image library; each name below
brings in what it needs when it is first used.
"""

from importlib import import_module

_HOME = {
    "AudioConfig": "config",
    "ConfigError": "config",
    "DepthConfig": "config",
    "EncoderConfig": "config",
    "ImageConfig": "config",
    "ImuConfig": "config",
    "Modality": "config",
    "PatchStemConfig": "config",
    "PointStemConfig": "config",
    "TextConfig": "config",
    "TextStemConfig": "config",
    "ThermalConfig": "config",
    "TrunkConfig": "config",
    "VideoConfig": "config",
    "EncoderStages": "modeling",
    "ImageBindEncoder": "modeling",
    "KeyMismatchError": "convert",
    "load_official": "convert",
    "MediaError": "media.source",
    "load_image": "media.image",
    "load_point_cloud": "media.point",
    "open_image": "media.image",
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
