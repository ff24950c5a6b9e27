"""A vision stem around a frozen image classifier, for encoders too small to learn to see by themselves.

What the classifier believes (its class probabilities) and what it felt (its pooled features) become the
class tokens: for a head that is the identity, tokens of class embeddings weighted by probability are ConSE
(Norouzi et al., arXiv:1312.5650). If the trunk has blocks, they also get one token for each place.
Shapes: B batch, C backbone channels, N class tokens, W width, h x w places.
"""

import math

import torch
from torch import Tensor, nn

from .config import TrunkConfig
from .stems import StemOutput

BATCH_NORM_EPS = 1e-3  # the published EfficientNet weights come from TensorFlow, whose default this is
STRIDE = 32  # pixels a place, in every EfficientNet
TEMPERATURE = 0.6  # the classifiers were trained with smoothed labels: sharpen what they say


class BackboneStem(nn.Module):
    """`config.backbone` names a timm EfficientNet, whose weights stay as they are, also in training."""

    def __init__(self, config: TrunkConfig) -> None:
        import timm

        super().__init__()
        self.backbone = timm.create_model(config.backbone, bn_eps=BATCH_NORM_EPS).requires_grad_(False)
        channels, classes = self.backbone.num_features, self.backbone.num_classes
        shape = (config.num_cls_tokens, config.width)
        self.summary = nn.Linear(channels + classes, math.prod(shape))
        self.unflatten = nn.Unflatten(-1, shape)
        self.projection = None
        if config.depth:
            places = math.ceil(config.stem.size[-1] / STRIDE) ** 2
            self.projection = nn.Linear(channels, config.width)
            self.position = nn.Parameter(torch.randn(1, places, config.width) * 0.02)

    def train(self, mode: bool = True) -> "BackboneStem":
        super().train(mode)
        self.backbone.eval()  # batch norm keeps its published statistics
        return self

    @property
    def dtype(self) -> torch.dtype:
        return self.summary.weight.dtype

    def pool(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) to pooled features (B, C)."""
        return self.backbone.forward_features(x.to(self.dtype)).mean((2, 3))

    def evidence(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, C) to what the class tokens are computed from, (B, C + classes)."""
        probabilities = torch.softmax(self.backbone.classifier(pooled) / TEMPERATURE, dim=-1)
        return torch.cat([pooled, probabilities], dim=-1)

    def summarise(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, C) to class tokens (B, N, W)."""
        return self.unflatten(self.summary(self.evidence(pooled)))

    def forward(self, x: Tensor) -> StemOutput:
        """(B, 3, H, W), or (B, 3, T, H, W) whose frames are averaged, to tokens (B, N + h * w or 0, W)."""
        frames = x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x
        maps = self.backbone.forward_features(frames.to(self.dtype))
        if x.ndim == 5:
            maps = maps.unflatten(0, (x.shape[0], x.shape[2])).mean(1)
        tokens = self.summarise(maps.mean((2, 3)))
        if self.projection is None:
            return StemOutput(tokens)
        places = self.projection(maps.flatten(2).transpose(1, 2)) + self.position
        return StemOutput(torch.cat([tokens, places], dim=1))
