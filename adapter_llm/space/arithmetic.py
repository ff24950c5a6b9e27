"""Vectors of the shared space: how one is made of features, how they are added, compared and made shares of.

An input is one vector of unit length, whatever its modality. Two are compared by their cosine, everywhere.
Shapes: N features an input, E encoder width, M vectors, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LOGIT_SCALE = 1 / 0.07  # where an encoder has learned none: the one that CLIP's and ImageBind's text trunks start at
LEAST_LENGTH = 1e-4  # of a sum of unit vectors; what is shorter is rounding and points anywhere


def vector_of(features: Tensor) -> Tensor:
    """Features (..., N, E) as one vector (..., E) of unit length: the mean of their directions, one a class token.

    The only rule by which inputs become comparable. Lengths, and with them the logit scales of the modalities, do
    not count.
    """
    return F.normalize(F.normalize(features.float(), dim=-1).mean(dim=-2), dim=-1)


def combine(vectors: Tensor | Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The weighted sum of the directions of vectors (M, E), of unit length (E,); a negative weight takes away.

    Raises ValueError for no vectors, weights that are not finite or not one a vector, and a sum that is zero.
    """
    if len(vectors) == 0:
        raise ValueError("there are no vectors to combine; give at least one")
    stacked = torch.stack([*vectors])
    factors = torch.ones(len(stacked)) if weights is None else torch.tensor([float(weight) for weight in weights])
    if len(factors) != len(stacked) or not factors.isfinite().all():
        raise ValueError(f"{len(stacked)} vectors need as many finite weights, not {list(weights or ())}")
    total = (F.normalize(stacked.float(), dim=-1) * factors.to(stacked.device)[:, None]).sum(dim=0)
    if total.norm() < LEAST_LENGTH * max(float(factors.abs().sum()), 1e-30):
        raise ValueError("the inputs cancel each other out: nothing is left of them to search with; change the weights")
    return F.normalize(total, dim=-1)


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosines (..., M) of vectors (..., E) with others (M, E); lengths do not count."""
    cosines = F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T
    return cosines.clamp(-1, 1)  # rounding goes beyond


def classify(vectors: Tensor, labels: Tensor, scale: float = LOGIT_SCALE) -> Tensor:
    """Probabilities (..., C) of labels (C, E) for vectors (..., E): softmax(scale * cosine).

    The scale says how much a small lead counts; `Embedder.logit_scale` is the one the text trunk has learned.
    """
    return torch.softmax(scale * similarity(vectors, labels), dim=-1)
