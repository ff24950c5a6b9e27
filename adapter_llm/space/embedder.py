"""Embedder: the encoder of a weights folder, alone. Media in, vectors of the shared space out.

Shapes: N features an input, E encoder width, R windows that are kept apart (1 where none are).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagebind_encoder.config import EncoderConfig, Modality
from imagebind_encoder.modalities import MAX_LOGIT_SCALE

from ..config import AdapterLLMConfig, ClipConfig
from ..device import DTYPES, choose_device
from ..encoders import find_encoder, load_encoder
from ..encoding import encode_items
from ..manifest import Manifest
from ..processing import InputOptions, LoadedItem, MediaItem, keywords_of, load_media, media_items
from ..sources import ENCODER, record_of
from .arithmetic import LOGIT_SCALE, combine, vector_of

HASH_DIGITS = 16


@dataclass(frozen=True)
class EncoderFolder:
    """The encoder of a weights folder, found and not loaded."""

    path: Path
    whole_config: AdapterLLMConfig
    manifest: Manifest

    @property
    def config(self) -> EncoderConfig | ClipConfig:
        return self.whole_config.encoder

    @classmethod
    def find(cls, weights: str | Path) -> EncoderFolder:
        """Of a weights folder or hub id, an encoder alone will do. Raises CheckpointError or ConfigError."""
        return cls(*find_encoder(weights))

    @cached_property
    def fingerprint(self) -> str:
        """What the space is: vectors of encoders with the same one may be compared."""
        if ENCODER in self.manifest.files:
            return fingerprint_of(self.manifest)
        return fingerprint_of(replace(self.manifest, files={ENCODER: record_of(self.path / ENCODER)}))

    def load(
        self, device: str = "auto", dtype: str = "float32", modalities: Iterable[Modality | str] | None = None
    ) -> Embedder:
        """Load the trunks of `modalities`, or all. Raises CheckpointError, FetchError or ValueError."""
        place = choose_device(device)
        kind = choose_encoder_dtype(dtype)
        encoder = load_encoder(self.path, self.whole_config, self.manifest, modalities)
        return Embedder(encoder.to(device=place, dtype=kind), self.config, self.fingerprint)


def fingerprint_of(manifest: Manifest) -> str:
    """What tells an encoder from all others; "" if the manifest does not know its file."""
    if ENCODER not in manifest.files:
        return ""
    backbone = manifest.backbone
    return digest(manifest.files[ENCODER].sha256, backbone and (backbone.sha256, backbone.member))


def choose_encoder_dtype(name: str) -> torch.dtype:
    """The floating point type called `name`. Raises ValueError for one that trunks overflow in, as float16."""
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"the dtype is {name!r}; an encoder runs in float32 or bfloat16")
    return DTYPES[name]


def features_of(config: EncoderConfig | ClipConfig, modality: Modality) -> int:
    """N, how many features an input of this modality becomes, or a window of it."""
    if isinstance(config, ClipConfig):
        return (config.image.size // config.patch_size) ** 2 + 1
    return config.trunks[modality].num_cls_tokens


def digest(*values: Any) -> str:
    """A short hash of values that JSON, or a config's own words, can tell apart."""
    text = json.dumps([v.to_dict() if hasattr(v, "to_dict") else v for v in values], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


@dataclass(frozen=True)
class Embedder:
    """An encoder that is loaded, and how its media are read. `Embedder.from_pretrained("weights/default")`."""

    encoder: nn.Module
    config: EncoderConfig | ClipConfig
    fingerprint: str = ""  # of the weights; "": not known, as for an encoder that is being trained

    @classmethod
    def from_pretrained(cls, weights: str | Path = "weights/default", **options: Any) -> Embedder:
        """Load a weights folder's encoder without its language model; `options` are those of EncoderFolder.load."""
        return EncoderFolder.find(weights).load(**options)

    @property
    def keywords(self) -> list[str]:
        """Media that are understood."""
        return keywords_of(self.config, self.encoder.modalities)

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype

    @property
    def logit_scale(self) -> float:
        """What the text trunk multiplies its embeddings with: the scale of `classify` that it was trained for."""
        trunks = getattr(self.encoder, "postprocessors", None)
        if trunks is None or Modality.TEXT not in trunks:
            return LOGIT_SCALE
        return float(trunks[Modality.TEXT].log_scale.detach().exp().clamp(max=MAX_LOGIT_SCALE))

    def load(self, keyword: str, source: Any, options: InputOptions = InputOptions()) -> LoadedItem:
        """An input, read and ready to be encoded. Raises MediaError, and ValueError for what these weights lack."""
        return load_media(MediaItem(keyword, source), self.config, options)

    def encode(self, items: Sequence[LoadedItem]) -> list[Tensor]:
        """Features (R, N, E) of each input, as the encoder makes them, in float32 on the CPU.

        Raises MediaError for a recording that breaks off, and ValueError for features that are not finite.
        """
        found = []
        for item, features in zip(items, encode_items(self.encoder, items, self.device), strict=True):
            if not features.isfinite().all():
                raise ValueError("its features are not finite numbers; look at its content")
            count = features_of(self.config, item.modality)
            found.append(features.unflatten(0, (-1, count)).float().cpu())
        return found

    def embed(
        self,
        *,
        normalized: bool = True,
        weights: Mapping[str, float] | None = None,
        window: float | None = None,
        hop: float | None = None,
        pool: str | None = None,
        **media: Any,
    ) -> Tensor:
        """One vector (E,) of all inputs, `combine`d by their weights, which may be negative here.

        Media are keywords, as in Pipeline; `window`, `hop` and `pool` are those of InputOptions. `normalized=False`
        gives the mean of a single input's features at the length that the encoder gives them, which is the
        modality's logit scale. Raises ValueError for that with several, and for windows that are kept apart.
        """
        options = InputOptions(window, hop, pool)
        if options.keeps_windows:
            raise ValueError('one vector is made of all windows; give pool="mean" or "max"')
        items = media_items(weights, signed=True, **media)
        if not items:
            raise ValueError(f"there is nothing to embed; give {' or '.join(self.keywords)}")
        if not normalized and len(items) > 1:
            raise ValueError("several inputs are combined by their directions; give one, or normalized=True")
        features = self.encode([self.load(item.keyword, item.source, options) for item in items])
        if not normalized:
            return features[0][0].mean(dim=0)
        vectors = [vector_of(found)[0] for found in features]  # one by one: trunks may differ in N
        return combine(vectors, [item.weight for item in items])

    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Unit vectors (len(texts), E). Raises ValueError if there are none."""
        if not texts:
            raise ValueError("there are no texts to embed; give at least one")
        found = []
        for start in range(0, len(texts), batch_size):
            found += self.encode([self.load("text", text) for text in texts[start : start + batch_size]])
        return vector_of(torch.cat(found))
