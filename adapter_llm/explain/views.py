"""Where on an input each feature comes from, and from there where on it the connector looked.

Shapes: N features an item, h x w patches or places, C channels of a backbone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imagebind_encoder.backbone import BackboneStem
from imagebind_encoder.config import ImageConfig, Modality
from imagebind_encoder.modeling import CLIP_DIMENSIONS
from imagebind_encoder.stems import ClipStem, PlaneStem

from ..clip import ClipEncoder
from ..processing import LoadedItem
from .explanation import View
from .rollout import clip_rollout, trunk_rollout

STEPS = 16  # of the integral below; with 4 the maps are the same to three digits


def views(encoder: nn.Module, item: LoadedItem, attention: Tensor, device: torch.device) -> Iterator[View]:
    """The views of an item whose features the connector read with `attention` (N,): one, or one a clip.

    None of texts, motion and point clouds, whose patches lie on no plane, nor of recordings that were read in windows.
    """
    tensor = item.tensor
    if tensor is None:
        return
    clips = tensor[None] if tensor.ndim < CLIP_DIMENSIONS - 1 else tensor
    for clip in clips:
        found = _feature_maps(encoder, item.modality, clip.to(device))
        if found is None:
            return
        maps, stride, kernel = found
        patch_map = torch.einsum("n,nhw->hw", attention, maps)
        shown = _shown(clip, encoder.config.image) if item.modality is Modality.VISION else clip[0].cpu()
        total = patch_map.sum()
        patch_map = patch_map / total if total > 0 else torch.full_like(patch_map, 1 / patch_map.numel())
        yield View(item.modality, shown, patch_map, _extent(maps.shape[1:], stride, kernel))


def _feature_maps(encoder: nn.Module, modality: Modality, clip: Tensor) -> tuple[Tensor, tuple, tuple] | None:
    """Where each feature of one clip comes from (N, h, w), and stride and kernel (height, width) of the patches."""
    if isinstance(encoder, ClipEncoder):
        return clip_maps(encoder, clip), *(2 * [2 * (encoder.config.patch_size,)])
    stem, trunk = encoder.stems[modality.value], encoder.trunks[modality.value]
    if isinstance(stem, BackboneStem):
        maps = backbone_maps(stem, trunk, clip)
        cell = tuple(size / count for size, count in zip(clip.shape[-2:], maps.shape[1:], strict=True))
        return maps, cell, cell  # a place sees far more than its part of the picture, but that most of all
    if isinstance(stem, (ClipStem, PlaneStem)):
        with torch.inference_mode():
            tokens = stem(clip[None]).tokens[0]
        shares = trunk_rollout(trunk, tokens)[: trunk.num_cls_tokens, trunk.num_cls_tokens :]
        config = stem.stem
        rows = config.grid[-2] if isinstance(stem, PlaneStem) else round(shares.shape[1] ** 0.5)
        return shares.unflatten(1, (rows, -1)), config.stride[-2:], config.kernel[-2:]
    return None


def clip_maps(encoder: ClipEncoder, image: Tensor) -> Tensor:
    """Where CLIP's tokens come from (N, h, w): a patch's from that patch, the class token's from where it looked."""
    of_class = clip_rollout(encoder, image)[0, 1:]
    patches = len(of_class)
    maps = torch.cat([of_class[None] / of_class.sum(), torch.eye(patches)])
    return maps.unflatten(1, (round(patches**0.5), -1))


def backbone_maps(stem: BackboneStem, trunk: nn.Module, clip: Tensor) -> Tensor:
    """Where the features of a picture, a film's clip or a sound's come from (N, h, w), for a stem that is a CNN."""
    count = trunk.num_cls_tokens
    with torch.inference_mode():
        frames = clip.transpose(0, 1) if clip.ndim == 4 else clip[None]
        places = stem.maps(frames).mean(0)  # (C, h, w)
        shares = trunk_rollout(trunk, stem(clip[None]).tokens[0])[:count]
    activation = class_activation(stem, places).clamp(min=0)
    activation = activation / activation.sum((1, 2), keepdim=True).clamp(min=torch.finfo(activation.dtype).tiny)
    maps = torch.einsum("nk,khw->nhw", shares[:, :count], activation)
    return maps + shares[:, count:].unflatten(1, maps.shape[1:]) if stem.projection is not None else maps


def class_activation(stem: BackboneStem, places: Tensor) -> Tensor:
    """What each place of a backbone's output (C, h, w) adds to the class tokens being what they are: (N, h, w).

    Class tokens are read from the mean over places. Integrated gradients (Sundararajan et al., arXiv:1703.01365) of a
    token's cosine with what it became, from a blank mean to this one, are exact: they sum to 1 minus the cosine at
    the blank. Along the way each place only adds its part of the mean, so no gradient goes through the backbone.
    """
    with torch.inference_mode(False), torch.enable_grad():
        places = places.detach().clone().float()
        mean = places.mean((1, 2))
        target = _directions(stem, mean[None])[0].detach()  # (N, W)
        path = (torch.arange(STEPS, device=mean.device) + 0.5)[:, None] / STEPS * mean
        path.requires_grad_()
        cosines = (_directions(stem, path) * target).sum(-1).sum(0)  # (N,)
        slopes = [torch.autograd.grad(cosine, path, retain_graph=True)[0].mean(0) for cosine in cosines]
        return (torch.einsum("nc,chw->nhw", torch.stack(slopes), places) / places[0].numel()).detach().cpu()


def _directions(stem: BackboneStem, pooled: Tensor) -> Tensor:
    """Pooled features (B, C) to class tokens (B, N, W) as the norm behind the stem leaves them, but for its weights."""
    tokens = stem.summarise(pooled.to(stem.dtype)).float()
    return F.normalize(tokens - tokens.mean(-1, keepdim=True), dim=-1)


def _shown(clip: Tensor, config: ImageConfig) -> Tensor:
    """The pixels (height, width, 3) that a picture's tensor, or a clip's first frame, was made of."""
    image = clip if clip.ndim == 3 else clip[:, 0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    pixels = (image.cpu() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
    return (pixels.flip(0) if config.channels == "bgr" else pixels).permute(1, 2, 0)


def _extent(grid: tuple[int, int], stride: tuple[int, int], kernel: tuple[int, int]) -> tuple[float, ...]:
    """Left, right, bottom, top of a map whose cells, a stride wide, lie around the middles of their patches."""
    (top, bottom), (left, right) = (
        ((size - step) / 2, (size - step) / 2 + step * count)
        for count, step, size in zip(grid, stride, kernel, strict=True)
    )
    return left, right, bottom, top
