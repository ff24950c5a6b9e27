"""The only way media files get in: path, URL, bytes or array -> preprocessed tensor."""

from .image import fit_image, load_image, normalise, open_image
from .source import Limits, MediaError, Source, fetch_url, read_source

__all__ = [
    "Limits",
    "MediaError",
    "Source",
    "fetch_url",
    "fit_image",
    "load_image",
    "normalise",
    "open_image",
    "read_source",
]
