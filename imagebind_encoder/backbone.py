"""A stem around a frozen classifier, of pictures or of sounds, for encoders too small to learn these by themselves.

What the classifier believes (its class probabilities) and what it felt (its pooled features) become the
class tokens: for a head that is the identity, tokens of class embeddings weighted by probability are ConSE
(Norouzi et al., arXiv:1312.5650). If the trunk has blocks, they also get one token for each place.
A spectrogram is a picture with one channel; for sounds the classifier's weights are the encoder's own.
Shapes: B batch, C backbone channels, N class tokens, W width, h x w places.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import Modality, TrunkConfig
from .stems import StemOutput

BATCH_NORM_EPS = 1e-3  # the published EfficientNet weights come from TensorFlow, whose default this is
STRIDE = 32  # pixels a place, in every EfficientNet
TEMPERATURE = 0.6  # the classifiers were trained with smoothed labels: sharpen what they say
AVERAGED = {Modality.AUDIO: (1, 2)}  # rows and columns that become one first: frames of 10 ms, in pairs of them


class BackboneStem(nn.Module):
    """`config.backbone` names a timm EfficientNet, whose weights stay as they are, also in training."""

    def __init__(self, config: TrunkConfig, modality: Modality = Modality.VISION) -> None:
        import timm

        super().__init__()
        self.averaged = AVERAGED.get(modality, (1, 1))
        options = {} if config.backbone_classes is None else {"num_classes": config.backbone_classes}
        self.backbone = timm.create_model(
            config.backbone, in_chans=config.stem.channels, bn_eps=BATCH_NORM_EPS, **options
        ).requires_grad_(False)
        channels, classes = self.backbone.num_features, self.backbone.num_classes
        shape = (config.num_cls_tokens, config.width)
        self.summary = nn.Linear(channels + classes, math.prod(shape))
        self.unflatten = nn.Unflatten(-1, shape)
        self.projection = None
        if config.depth:
            sides = zip(config.stem.size[-2:], self.averaged, strict=True)
            places = math.prod(math.ceil(side // averaged / STRIDE) for side, averaged in sides)
            self.projection = nn.Linear(channels, config.width)
            self.position = nn.Parameter(torch.randn(1, places, config.width) * 0.02)

    def train(self, mode: bool = True) -> "BackboneStem":
        super().train(mode)
        self.backbone.eval()  # batch norm keeps its published statistics
        return self

    @property
    def dtype(self) -> torch.dtype:
        return self.summary.weight.dtype

    def maps(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), or spectrograms (B, 1, mel bins, frames), to (B, C, h, w)."""
        return self.backbone.forward_features(F.avg_pool2d(x.to(self.dtype), self.averaged))

    def pool(self, x: Tensor) -> Tensor:
        """Pictures or spectrograms to pooled features (B, C)."""
        return self.maps(x).mean((2, 3))

    def evidence(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, C) to what the class tokens are computed from, (B, C + classes)."""
        probabilities = torch.softmax(self.backbone.classifier(pooled) / TEMPERATURE, dim=-1)
        return torch.cat([pooled, probabilities], dim=-1)

    def summarise(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, C) to class tokens (B, N, W)."""
        return self.unflatten(self.summary(self.evidence(pooled)))

    def forward(self, x: Tensor) -> StemOutput:
        """(B, 3, H, W), or (B, 3, T, H, W) whose frames are averaged, to tokens (B, N + h * w or 0, W).

        Of sounds: (B, 1, mel bins, frames).
        """
        maps = self.maps(x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x)
        if x.ndim == 5:
            maps = maps.unflatten(0, (x.shape[0], x.shape[2])).mean(1)
        tokens = self.summarise(maps.mean((2, 3)))
        if self.projection is None:
            return StemOutput(tokens)
        places = self.projection(maps.flatten(2).transpose(1, 2)) + self.position
        return StemOutput(torch.cat([tokens, places], dim=1))
