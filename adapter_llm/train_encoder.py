"""The default vision encoder: a frozen classifier whose class tokens are solved for, not searched.

Token 0 is what the classifier believes: class embeddings weighted by probability (ConSE, arXiv:1312.5650).
Token 1 is what is going on: a ridge regression from the same evidence to the embedding of the photo's captions.
With 640 captioned photos a ridge beat every trunk of attention blocks that was tried, on held-out photos.
Shapes: V views of a photo, M photos, C backbone channels, N class tokens, E embedding size.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from imagebind_encoder.config import EncoderConfig, ImageConfig, Modality, TrunkConfig
from imagebind_encoder.media.image import load_image, open_image
from imagebind_encoder.modeling import ImageBindEncoder

EMBEDDING_DIM = 384  # of the sentence encoder whose space this is
RIDGE = 3.0  # times the mean squared length of the inputs; 0.1 to 10 were tried


def vision_config(backbone: str = "efficientnet_lite2", size: int = 260) -> EncoderConfig:
    """The default encoder's sizes. The classifier wants values in [-1, 1]: mean and std are 0.5."""
    half = (0.5, 0.5, 0.5)
    trunk = TrunkConfig(width=EMBEDDING_DIM, depth=0, heads=1, num_cls_tokens=2, backbone=backbone)
    return EncoderConfig(EMBEDDING_DIM, {Modality.VISION: trunk}, ImageConfig(size=size, mean=half, std=half))


def varied(image: Image.Image, rng: random.Random) -> Image.Image:
    """A random cut of a picture, perhaps mirrored, its light a little changed."""
    width, height = image.size
    share, shape = rng.uniform(0.55, 1.0), 2 ** rng.uniform(-0.35, 0.35)
    cut_width = min(width, round((width * height * share * shape) ** 0.5))
    cut_height = min(height, round((width * height * share / shape) ** 0.5))
    left, top = rng.randint(0, width - cut_width), rng.randint(0, height - cut_height)
    image = image.crop((left, top, left + cut_width, top + cut_height))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Color, ImageEnhance.Contrast):
        image = enhance(image).enhance(rng.uniform(0.8, 1.2))
    return image


@torch.inference_mode()
def pool_photos(encoder: ImageBindEncoder, paths: Sequence[Path], views: int, seed: int = 0) -> Tensor:
    """Pooled backbone features (V, M, C); view 0 is the photo as it is, the others are varied."""
    stem, image_config = encoder.stems["vision"], encoder.config.image
    rng, pooled = random.Random(seed), []
    for view in range(views):
        for start in tqdm(range(0, len(paths), 32), desc=f"view {view + 1} of {views}", leave=False):
            images = [open_image(path) for path in paths[start : start + 32]]
            if view:
                images = [varied(image, rng) for image in images]
            pooled.append(stem.pool(torch.stack([load_image(image, image_config) for image in images])))
    return torch.cat(pooled).view(views, len(paths), -1)


@torch.inference_mode()
def finish(encoder: ImageBindEncoder, tokens: Tensor) -> Tensor:
    """Class tokens (M, N, W) to features (M, N, E), through the rest of the vision encoder."""
    tokens = encoder.trunks["vision"](tokens)
    return encoder.postprocessors["vision"](encoder.heads["vision"](tokens))


def ridge(inputs: Tensor, targets: Tensor, strength: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Weight (E, X) and bias (E,) of the ridge regression from (M, X) to (M, E), in its dual form."""
    mean, target_mean = inputs.mean(0), targets.mean(0)
    centred = inputs - mean
    gram = centred @ centred.T
    penalty = strength * gram.diagonal().mean() * torch.eye(len(inputs))
    weight = (centred.T @ torch.linalg.solve(gram + penalty, targets - target_mean)).T
    return weight, target_mean - weight @ mean


def balance(evidence: Tensor, channels: int) -> Tensor:
    """Factors (X,) that give pooled features and probabilities the same say in a ridge."""
    centred = evidence - evidence.mean(0)
    parts = centred[:, :channels], centred[:, channels:]
    return torch.cat([(1 / part.square().sum(1).mean().sqrt()).expand(part.shape[1]) for part in parts])


@torch.inference_mode()
def solve_vision(
    encoder: ImageBindEncoder, class_embeddings: Tensor, pooled: Tensor, caption_embeddings: Tensor, folds: int = 5
) -> Tensor:
    """Set the class tokens and head of the vision encoder; return features (V, M, N, E) of the photos.

    `class_embeddings` (classes, E); `pooled` (V, M, C) and `caption_embeddings` (M, E) of captioned photos.
    The returned features are out of fold: each photo's were predicted by a regression that did not see it,
    so that whoever learns from them meets the errors it will meet on new photos.
    """
    stem, head = encoder.stems["vision"], encoder.heads["vision"]
    views, photos, channels = pooled.shape
    width = class_embeddings.shape[1]
    head.projection.weight.copy_(torch.eye(width))
    stem.summary.weight.zero_()
    stem.summary.bias.zero_()
    stem.summary.weight[:width, channels:] = class_embeddings.T

    evidence = stem.evidence(pooled)
    factors = balance(evidence[0], channels)

    def solve(chosen: Tensor) -> None:
        inputs = (evidence[:, chosen] * factors).flatten(0, 1)
        weight, bias = ridge(inputs, caption_embeddings[chosen].repeat(views, 1), RIDGE)
        stem.summary.weight[width:] = weight * factors
        stem.summary.bias[width:] = bias

    features = pooled.new_zeros(views, photos, 2, width)
    fold_of = torch.arange(photos) % folds
    for fold in range(folds):
        solve((fold_of != fold).nonzero()[:, 0])
        features[:, fold_of == fold] = finish(
            encoder, stem.summarise(pooled[:, fold_of == fold].flatten(0, 1))
        ).unflatten(0, (views, -1))
    solve(torch.arange(photos))
    return features


@torch.inference_mode()
def imagine(
    encoder: ImageBindEncoder, pooled: Tensor, labels: Tensor, class_embeddings: Tensor, per_class: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Features of every class, also of those without a photo: features (classes, per_class, N, E), labels.

    A real photo's pooled features are moved along the difference of two classifier rows until the wanted
    class is as likely as the photo's own was. The photo keeps its noise, its background and its doubts.
    Donors are photos (M, C) of similar classes twice in three times. The label returned for each is what the
    classifier now believes, (classes, per_class).
    """
    stem = encoder.stems["vision"]
    classifier = stem.backbone.classifier
    weight = classifier.weight
    logits = classifier(pooled)
    generator = torch.Generator().manual_seed(seed)
    classes = len(weight)
    similarity = class_embeddings @ class_embeddings[labels].T  # (classes, M)
    near = torch.multinomial(torch.softmax(similarity * 15, -1), per_class, True, generator=generator)
    anyone = torch.randint(len(pooled), near.shape, generator=generator)
    donor = torch.where(torch.rand(near.shape, generator=generator) < 2 / 3, near, anyone)
    features, believed = [], []
    for wanted in range(classes):
        chosen = donor[wanted]
        own = labels[chosen]
        direction = weight[wanted] - weight[own]
        gain = (direction * weight[wanted]).sum(-1)
        gap = logits[chosen, own] - logits[chosen, wanted]
        step = torch.where(own == wanted, 0.0, gap / gain.clamp(min=1e-3))
        step = step * (0.8 + 0.4 * torch.rand(per_class, generator=generator))
        moved = (pooled[chosen] + step[:, None] * direction).clamp(min=0)
        features.append(finish(encoder, stem.summarise(moved)))
        believed.append(classifier(moved).argmax(-1))
    return torch.stack(features), torch.stack(believed)


def nearest(embeddings: Tensor, count: int) -> Tensor:
    """Indices (classes, count) of the most similar other classes."""
    similarity = F.normalize(embeddings, dim=-1) @ F.normalize(embeddings, dim=-1).T
    return similarity.fill_diagonal_(-1).topk(count).indices
