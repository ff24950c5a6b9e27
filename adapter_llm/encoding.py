"""Loaded media to features, however many of whatever kind: what is alike goes through the encoder together.

Shapes: I items, N features an item, E encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from imagebind_encoder.config import Modality

from .processing import LoadedItem

# what goes wrong with a single input, as opposed to with the program
INPUT_ERRORS = (ValueError, OSError)
WINDOWS_AT_ONCE = 8  # of a recording; what is in memory does not grow with its length


@torch.inference_mode()
def encode_items(encoder: nn.Module, items: Sequence[LoadedItem], device: torch.device) -> list[Tensor]:
    """Features of each item (N, E), in order; (windows * N, E) for one that keeps its windows apart.

    Items of one modality and shape go through the encoder in one call. The windows of a recording are read here:
    raises MediaError if one of them cannot be.
    """
    features: list[Tensor | None] = [None] * len(items)
    alike: dict[tuple, list[int]] = {}
    for number, item in enumerate(items):
        if item.tensor is None:
            features[number] = settled(encoder, item, device).features
        else:
            alike.setdefault((item.modality, item.tensor.shape), []).append(number)
    for (modality, _), numbers in alike.items():
        found = _encode(encoder, modality, [items[number].tensor for number in numbers], device)
        for number, feature in zip(numbers, found, strict=True):
            features[number] = feature
    return features


@torch.inference_mode()
def settled(encoder: nn.Module, item: LoadedItem, device: torch.device) -> LoadedItem:
    """An item that needs its file no more: a recording that is read in windows comes back as its features.

    Raises MediaError if a window cannot be read.
    """
    if item.windows is None:
        return item
    return replace(item, windows=None, features=_pooled(encoder, item, device))


def _pooled(encoder: nn.Module, item: LoadedItem, device: torch.device) -> Tensor:
    """Features (N, E) of a recording's windows, pooled, or (windows * N, E) with pool "none"."""
    total, count, kept = None, 0, []
    for tensors in _chunks(item.windows, WINDOWS_AT_ONCE):
        found = _encode(encoder, item.modality, tensors, device)
        kind, found = found.dtype, found.float()  # a long sum in half precision stands still
        count += len(found)
        if item.pool == "none":
            kept.append(found.flatten(0, 1))
        elif item.pool == "max":
            largest = found.amax(dim=0)
            total = largest if total is None else torch.maximum(total, largest)
        else:
            total = found.sum(dim=0) if total is None else total + found.sum(dim=0)
    if item.pool == "none":
        return torch.cat(kept).to(kind)
    return (total if item.pool == "max" else total / count).to(kind)


def _encode(encoder: nn.Module, modality: Modality, tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    return encoder({modality: torch.stack(list(tensors)).to(device)})[modality]


def _chunks(tensors: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    tensors = iter(tensors)
    while chunk := list(islice(tensors, size)):
        yield chunk
