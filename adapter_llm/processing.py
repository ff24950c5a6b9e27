"""Text and media in, tensors out: the only place where the tokenizer and the loaders meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imagebind_encoder.config import EncoderConfig, Modality
from imagebind_encoder.media.image import load_image

from .config import AdapterLLMConfig, ClipConfig
from .model import MediaBatch
from .prompts import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Question = str | Sequence[dict]  # a question, or a conversation that ends in one

KEYWORDS = {"image": Modality.VISION, "point": Modality.POINT}


@dataclass(frozen=True)
class MediaItem:
    """One picture, sound, ... of a question, and its weight among the others."""

    modality: Modality
    source: Any  # whatever the modality's loader takes
    weight: float = 1.0


def media_items(weights: Mapping[str, float] | None = None, **media: Any) -> list[MediaItem]:
    """Keyword media (`image=...`) as items. Raises ValueError for a negative weight or an unknown keyword."""
    factors = weights or {}
    unknown = [name for name in [*media, *factors] if name not in KEYWORDS]
    if unknown:
        raise ValueError(f"unknown media {', '.join(unknown)}; there are {', '.join(KEYWORDS)}")
    items = []
    for name, given in media.items():
        entries = [] if given is None else given if isinstance(given, list) else [given]
        for entry in entries:
            source, weight = entry if isinstance(entry, tuple) else (entry, 1.0)
            weight = float(weight) * factors.get(name, 1.0)
            if not 0 <= weight < float("inf"):
                raise ValueError(f"the weight of {source!r} is {weight:g}; it must be a number from 0 up")
            items.append(MediaItem(KEYWORDS[name], source, weight))
    return items


def load_media(item: MediaItem, config: EncoderConfig | ClipConfig) -> Tensor:
    """The tensor of one item. Raises MediaError for what cannot be read, ValueError for what these weights lack."""
    if item.modality not in config.modalities:
        raise ValueError(f"these weights have no {item.modality} trunk, only {', '.join(config.modalities)}")
    if item.modality is Modality.VISION:
        return load_image(item.source, config.image)
    if item.modality is Modality.POINT:
        from imagebind_encoder.media.point import load_point_cloud

        return load_point_cloud(item.source, config.trunks[Modality.POINT].stem)
    raise ValueError(f"files of modality {item.modality} cannot be loaded yet; images and point clouds can")


@dataclass(frozen=True)
class LoadedItem:
    modality: Modality
    tensor: Tensor
    weight: float


@dataclass(frozen=True)
class Processor:
    """What a checkpoint needs to know to turn questions into tensors."""

    tokenizer: PreTrainedTokenizerBase
    config: AdapterLLMConfig

    def load(self, items: Sequence[MediaItem]) -> list[LoadedItem]:
        """The media of one question. Raises ValueError if they weigh nothing together."""
        if items and not sum(item.weight for item in items) > 0:
            raise ValueError("all weights are 0; give at least one input a weight above 0")
        return [LoadedItem(i.modality, load_media(i, self.config.encoder), i.weight) for i in items]

    def stack(self, questions: Sequence[Sequence[LoadedItem]], device: torch.device) -> Mapping[Modality, MediaBatch]:
        """The media of a batch of questions, by modality; empty if there are none."""
        by_modality: dict[Modality, list[tuple[int, LoadedItem]]] = {}
        for row, items in enumerate(questions):
            for item in items:
                by_modality.setdefault(item.modality, []).append((row, item))
        return {
            modality: MediaBatch(
                torch.stack([item.tensor for _, item in found]).to(device),
                torch.tensor([row for row, _ in found], device=device),
                torch.tensor([item.weight for _, item in found], device=device),
            )
            for modality, found in by_modality.items()
        }

    def tokenize(
        self, questions: Sequence[Question], has_media: Sequence[bool], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Prompts as input_ids and attention_mask (B, T), padded on the left."""
        ids = [
            render(self.tokenizer, self.config.prompt, question, media)
            for question, media in zip(questions, has_media, strict=True)
        ]
        length = max(map(len, ids))
        pad = self.pad_token_id
        input_ids = torch.tensor([[pad] * (length - len(row)) + row for row in ids], device=device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids], device=device)
        return input_ids, mask

    @property
    def pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad


def as_published(config: AdapterLLMConfig) -> AdapterLLMConfig:
    """ImageBind ignored how a picture is to be turned; the library that V2 read its pictures with did not."""
    if not isinstance(config.encoder, EncoderConfig):
        return config
    return replace(config, encoder=replace(config.encoder, image=replace(config.encoder.image, orient=False)))
