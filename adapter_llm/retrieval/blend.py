"""What retrieval does to features: the blend with their neighbours, and the vector an image generator takes.

Shapes: B batch, M media items, N features an item, E encoder width, k neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from imagebind_encoder.config import Modality
from imagebind_encoder.schema import ConfigError, is_number, require_positive

from .index import FeatureIndex

OUTPUT_DIVISOR = {"point": 5.0}  # of head outputs for the image generator, as in ImageBind-LLM


@dataclass(frozen=True)
class RetrievalOptions:
    """How features are blended with their neighbours; the defaults are ImageBind-LLM's."""

    neighbours: int = 10  # k
    sharpness: float = 20.0  # factor on the scores before their softmax; 0: all neighbours count the same
    weight: float = 0.5  # of the neighbours' mean; 0: features stay as they are, 1: only the mean is left

    def __post_init__(self) -> None:
        require_positive(self, "neighbours")
        if not is_number(self.sharpness) or self.sharpness < 0:
            raise ConfigError(f"RetrievalOptions.sharpness must be a number from 0 up, not {self.sharpness!r}")
        if not is_number(self.weight) or not 0 <= self.weight <= 1:
            raise ConfigError(f"RetrievalOptions.weight must be a number from 0 to 1, not {self.weight!r}")


def blend(features: Tensor, index: FeatureIndex, options: RetrievalOptions = RetrievalOptions()) -> Tensor:
    """Mixed features (B, N, E) drawn towards their nearest stored vectors; each of the B * N alone.

    Neighbours are found by inner product with the feature as it is, not normalised. Their mean, weighted by
    softmax(sharpness * score) and normalised, is the prototype p; the result is the normalised
    (1 - weight) * feature + weight * p. A feature of zeros, of a row without media, stays what it is. Raises
    FeatureIndexError for features of another width.
    """
    if options.weight == 0:
        return features
    flat = features.reshape(-1, features.shape[-1]).float()
    scores, positions = index.search(flat, options.neighbours)
    share = torch.softmax(options.sharpness * scores, dim=-1)
    prototype = F.normalize((share[:, :, None] * index.take(positions)).sum(dim=1), dim=-1)
    blended = F.normalize((1 - options.weight) * flat + options.weight * prototype, dim=-1)
    blended = torch.where(flat.any(dim=-1, keepdim=True), blended, flat)
    return blended.view_as(features).to(features.dtype)


def generation_vector(
    outputs: Mapping[Modality, Tensor],
    rows: Tensor,
    weights: Tensor,
    batch_size: int = 1,
    index: FeatureIndex | None = None,
    options: RetrievalOptions = RetrievalOptions(),
) -> Tensor:
    """What unCLIP takes for an image embedding (B, E), of head outputs (M, N, E) before the postprocessor.

    `rows` and `weights` say for each item, in the order of `outputs`, which of the B vectors it belongs to and how
    much it counts there. The vector is the weighted mean, its length kept: unCLIP was trained on the same image
    encoder's outputs as they are. With an index its direction is blended. Of several features of an item the first
    is taken. Raises FeatureIndexError for features of another width.
    """
    items = torch.cat([output[:, 0].float() / OUTPUT_DIVISOR.get(name, 1.0) for name, output in outputs.items()])
    weights = weights.to(items)
    total = weights.new_zeros(batch_size).index_add(0, rows, weights)
    share = weights / (total[rows] + 1e-6)  # as in model.mix
    vector = items.new_zeros(batch_size, items.shape[1]).index_add(0, rows, items * share[:, None])
    if index is None:
        return vector
    length = vector.norm(dim=-1, keepdim=True)
    return blend(F.normalize(vector, dim=-1), index, options) * length
