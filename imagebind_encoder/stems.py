"""Stems: an input of one modality becomes tokens of its trunk's width.

Shapes: B batch (clips already folded in), N class tokens, W width, tokens (B, N + patches, W).
The five patch stems put N class tokens in front, then add the position embedding, which
has an entry for each of them. Text differs, see `TextStem`; point clouds do, see point.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import Modality, TextStemConfig, TrunkConfig
from .modalities import STEM_NORM_EPS


@dataclass(frozen=True)
class StemOutput:
    """Tokens of an input, and what the trunk has to know of them."""

    tokens: Tensor  # (B, T, W)
    mask: Tensor | None = None  # (T, T), true where row may look at column; None: everywhere
    position: Tensor | None = None  # (B, T, W), added before every block; None: it is in the tokens
    read_at: Tensor | None = None  # (B, N), tokens that become features; None: the first N


class PatchStem(nn.Module):
    """What the patch stems share: class tokens, positions and the optional norm."""

    def __init__(self, config: TrunkConfig, modality: Modality) -> None:
        super().__init__()
        self.modality = modality
        self.stem = config.stem
        self.num_cls_tokens = config.num_cls_tokens
        self.projection = self.build_projection(config.width)
        self.norm = nn.LayerNorm(config.width, eps=STEM_NORM_EPS) if self.stem.norm else nn.Identity()
        self.cls_token = nn.Parameter(torch.empty(1, config.num_cls_tokens, config.width))
        self.position = nn.Parameter(
            torch.empty(1, config.num_cls_tokens + self.stem.num_patches, config.width)
        )  # fmt: skip

    def build_projection(self, width: int) -> nn.Module:
        raise NotImplementedError

    def patches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens (B, patches, W) before the norm, and positions (1, N + patches, W) for them."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> StemOutput:
        """Input of the modality -> tokens (B, N + patches, W). Raises ValueError on a wrong shape."""
        patches, position = self.patches(x.to(self.projection.weight.dtype))
        patches = self.norm(patches)
        return StemOutput(torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + position)

    def refuse(self, x: Tensor, wanted: str, advice: str) -> ValueError:
        return ValueError(f"{self.modality} input has shape {tuple(x.shape)} but must be {wanted}; {advice}")


class ClipStem(PatchStem):
    """Vision. An image is a clip that stands still: its one frame is repeated."""

    def build_projection(self, width: int) -> nn.Module:
        return nn.Conv3d(self.stem.channels, width, self.stem.kernel, self.stem.stride, bias=False)

    def patches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, height, width) or (B, 3, frames, height, width), frames 1 or 2 when published.

        Height and width must be equal. Sizes that are no multiple of the kernel lose their
        last rows and columns, as in the original.
        """
        channels, frames = self.stem.channels, self.stem.size[0]
        wanted = f"(B, {channels}, height, width) or (B, {channels}, {frames}, height, width)"
        if x.ndim not in (4, 5) or x.shape[1] != channels:
            raise self.refuse(x, wanted, "put channels second, and give a video its clip axis: (B, S, 3, T, H, W)")
        if x.ndim == 4:
            x = x.unsqueeze(2)
        if x.shape[2] == 1:
            x = x.expand(-1, -1, frames, -1, -1)
        if x.shape[2] != frames:
            raise self.refuse(x, wanted, f"cut the video into clips of {frames} frames on the clip axis S")
        height, width = x.shape[-2:]
        if height != width or height < self.stem.kernel[1]:
            raise self.refuse(x, f"square and at least {self.stem.kernel[1]} pixels a side", "crop or resize it")
        patches = self.projection(x)
        return patches.flatten(2).transpose(1, 2), self.position_for(patches.shape[-1])

    def position_for(self, side: int) -> Tensor:
        """Positions (1, N + side * side, W); those of the patches are resampled, bicubic, to other sizes."""
        trained = self.stem.grid[-1]
        if side == trained:
            return self.position
        front, grid = self.position.split([self.num_cls_tokens, self.stem.num_patches], dim=1)
        grid = grid.transpose(1, 2).unflatten(2, (trained, trained))
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False, antialias=False)
        return torch.cat([front, grid.flatten(2).transpose(1, 2)], dim=1)


class PlaneStem(PatchStem):
    """Audio (mel spectrogram), depth and thermal: one plane of one fixed size."""

    def build_projection(self, width: int) -> nn.Module:
        return nn.Conv2d(self.stem.channels, width, self.stem.kernel, self.stem.stride, bias=False)

    def patches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, channels, *size), for audio (B, 1, mel bins, frames)."""
        wanted = (self.stem.channels, *self.stem.size)
        if x.ndim != 4 or tuple(x.shape[1:]) != wanted:
            raise self.refuse(
                x, f"(B, {', '.join(map(str, wanted))})", "pad, crop or resize it, its positions cannot be resampled"
            )
        return self.projection(x).flatten(2).transpose(1, 2), self.position


class WindowStem(PatchStem):
    """IMU: windows of a recording, each flattened channel by channel."""

    def build_projection(self, width: int) -> nn.Module:
        return nn.Linear(self.stem.channels * self.stem.kernel[0], width, bias=False)

    def patches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, channels, samples); samples behind the last whole window are cut."""
        (samples,), (kernel,), (stride,) = self.stem.size, self.stem.kernel, self.stem.stride
        if x.ndim != 3 or x.shape[1] != self.stem.channels or not samples <= x.shape[2] < samples + stride:
            raise self.refuse(x, f"(B, {self.stem.channels}, {samples})", "resample or cut the recording")
        windows = x.unfold(-1, kernel, stride)  # (B, channels, windows, kernel)
        return self.projection(windows.transpose(1, 2).flatten(2)), self.position


class TextStem(nn.Module):
    """Token ids -> tokens. The feature is read where the largest id (the end token) stands.

    With N > 1 class tokens, N - 1 learned tokens follow the context. They see the whole text
    and each other; the text stays causal and never sees them, so its own tokens, and thereby
    feature 0, are those of a model with N = 1.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.stem: TextStemConfig = config.stem
        self.token_embedding = nn.Embedding(self.stem.vocab_size, config.width)
        self.position = nn.Parameter(torch.empty(1, self.stem.context_length, config.width))
        extra = config.num_cls_tokens - 1
        self.extra_cls_tokens = nn.Parameter(torch.empty(1, extra, config.width)) if extra else None

    def forward(self, input_ids: Tensor) -> StemOutput:
        """input_ids (B, context) integers -> tokens (B, context + N - 1, W). ValueError on a wrong shape or id."""
        context, vocab_size = self.stem.context_length, self.stem.vocab_size
        if input_ids.ndim != 2 or input_ids.shape[1] != context or input_ids.is_floating_point():
            raise ValueError(
                f"text input has shape {tuple(input_ids.shape)} and type {input_ids.dtype} but must be integer ids "
                f"(B, {context}); pad with 0 or cut the ids to {context}"
            )
        # Elsewhere the check would wait for the device; there the embedding's own assertion has to do.
        if input_ids.device.type == "cpu" and input_ids.numel():
            low, high = int(input_ids.min()), int(input_ids.max())
            if low < 0 or high >= vocab_size:
                raise ValueError(
                    f"text input holds ids from {low} to {high} but the vocabulary has {vocab_size}; "
                    "use the tokenizer these weights were trained with"
                )
        tokens = self.token_embedding(input_ids) + self.position
        read_at = input_ids.argmax(dim=-1, keepdim=True)  # the first one if the largest id is repeated
        if self.extra_cls_tokens is not None:
            tokens = torch.cat([tokens, self.extra_cls_tokens.expand(len(tokens), -1, -1)], dim=1)
            extra = torch.arange(context, tokens.shape[1], device=tokens.device)
            read_at = torch.cat([read_at, extra.expand(len(tokens), -1)], dim=1)
        return StemOutput(tokens, mask=self.mask(tokens.shape[1], tokens.device), read_at=read_at)

    def mask(self, num_tokens: int, device: torch.device) -> Tensor:
        """(num_tokens, num_tokens), true where row may look at column. Made anew: a buffer would
        stay behind on the meta device when weights are assigned."""
        mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()
        mask[self.stem.context_length :] = True
        return mask


def build_stem(config: TrunkConfig, modality: Modality) -> nn.Module:
    """The stem of one trunk, parameters not yet initialised."""
    if config.backbone is not None:
        from .backbone import BackboneStem  # brings timm

        return BackboneStem(config, modality)
    if modality is Modality.TEXT:
        return TextStem(config)
    if modality is Modality.POINT:
        from .point import PointStem  # few encoders have one

        return PointStem(config)
    kind = {1: WindowStem, 2: PlaneStem, 3: ClipStem}[len(config.stem.size)]
    return kind(config, modality)
