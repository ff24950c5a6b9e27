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
    "EncoderStages": "modeling",
    "Frames": "media.video",
    "ImageBindEncoder": "modeling",
    "ImageConfig": "config",
    "ImuConfig": "config",
    "KeyMismatchError": "convert",
    "MediaError": "media.source",
    "Modality": "config",
    "Motion": "media.imu",
    "PatchStemConfig": "config",
    "PointStemConfig": "config",
    "TextConfig": "config",
    "TextStemConfig": "config",
    "ThermalConfig": "config",
    "TrunkConfig": "config",
    "VideoConfig": "config",
    "Waveform": "media.audio",
    "Windows": "media.windows",
    "load_audio": "media.audio",
    "load_depth": "media.depth",
    "load_image": "media.image",
    "load_imu": "media.imu",
    "load_official": "convert",
    "load_point_cloud": "media.point",
    "load_text": "media.text",
    "load_thermal": "media.thermal",
    "load_video": "media.video",
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
