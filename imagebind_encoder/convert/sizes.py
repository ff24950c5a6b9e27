"""The sizes of a published file, read from the shapes of its tensors."""

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..config import (
    FACTS,
    EncoderConfig,
    ImageConfig,
    Modality,
    PatchStemConfig,
    PointStemConfig,
    TextStemConfig,
    TrunkConfig,
)
from ..modalities import StemConfig
from .keys import KeyMismatchError, check_keys
from .table import find_depths, key_table, official_owner

# Head counts leave no trace in tensor shapes.
PUBLISHED_HEADS: Mapping[Modality, int] = {
    modality: trunk.heads for modality, trunk in EncoderConfig.preset("w3d").trunks.items()
}

Shapes = Mapping[str, tuple[int, ...]]  # by our names


def config_from_official(
    state_dict: Mapping[str, Tensor],
    heads: Mapping[Modality, int] | None = None,
    image: ImageConfig | None = None,
    point: PointStemConfig | None = None,
) -> EncoderConfig:
    """Sizes of an official state dict, for the modalities it holds, read from its tensor shapes.

    What cannot be read defaults to what is published; if it is wrong, the weights load and compute
    nonsense. These are `heads`, of which only those that differ need be given, and of `point` the
    number of groups, their size and the start. Patch strides and the two sides of a spectrogram
    are taken as published. Raises KeyMismatchError on an incomplete file, ConfigError on sizes
    that cannot be.
    """
    depths = find_depths(state_dict, official_owner)
    if not depths:
        raise KeyMismatchError("the official checkpoint", ["modality_trunks.*"], state_dict)
    table = key_table(depths)
    check_keys("the official checkpoint", filter(official_owner, state_dict), table)
    shapes = {target: tuple(state_dict[source].shape) for source, target in table.items() if target}
    heads = {**PUBLISHED_HEADS, **(heads or {})}
    trunks = {}
    for modality, depth in depths.items():
        hidden, width = shapes[f"trunks.{modality}.blocks.0.mlp.up.weight"]
        trunks[modality] = TrunkConfig(
            width=width,
            depth=depth,
            heads=heads[modality],
            mlp_ratio=hidden / width,
            stem=_stem(modality, shapes, point or PointStemConfig()),
        )
    embedding_dim = shapes[f"heads.{next(iter(depths))}.projection.weight"][0]
    return EncoderConfig(embedding_dim, trunks, image or ImageConfig())


def _stem(modality: Modality, shapes: Shapes, point: PointStemConfig) -> StemConfig:
    if modality is Modality.POINT:
        channels, output_width = shapes["stems.point.projection.weight"][1], shapes["trunks.point.projection"][1]
        return replace(point, channels=channels, output_width=output_width)
    positions = shapes[f"stems.{modality}.position"][1]
    if modality is Modality.TEXT:
        return TextStemConfig(shapes[f"stems.{modality}.token_embedding.weight"][0], positions)
    published, projection = FACTS[modality].stem, shapes[f"stems.{modality}.projection.weight"]
    if modality is Modality.IMU:
        kernel = published.kernel[0]
        return PatchStemConfig(projection[1] // kernel, ((positions - 1) * kernel,), (kernel,), (kernel,))
    channels, kernel = projection[1], projection[2:]
    if modality is Modality.AUDIO:
        return PatchStemConfig(channels, published.size, kernel, published.stride)
    side = math.isqrt(positions - 1) * kernel[-1]
    return PatchStemConfig(channels, (*kernel[:-2], side, side), kernel, kernel, published.norm)
