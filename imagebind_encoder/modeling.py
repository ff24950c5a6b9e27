"""ImageBindEncoder: {modality: tensor} -> {modality: features}.

Shapes: B batch, S clips, N class tokens, W width of a trunk, E embedding_dim.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import FACTS, EncoderConfig, Modality, TrunkConfig
from .modalities import MAX_LOGIT_SCALE, NORM_EPS
from .stems import build_stem
from .transformer import build_trunk

INIT_STD = 0.02
CLIP_DIMENSIONS = 5  # an input of so many dimensions, or more, is (B, S, ...)


@dataclass(frozen=True)
class EncoderStages:
    """What one modality's input is on its way; C = B * S clips, or B where there is no clip axis."""

    stem_tokens: Tensor  # (C, tokens, W) entering the trunk
    trunk_tokens: Tensor  # (C, tokens, W) leaving it
    head: Tensor  # (C, N, E) before normalisation
    embedding: Tensor  # (B, N, E) what `forward` returns


class Head(nn.Module):
    """Norm and linear map without bias, applied to each class token."""

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.projection = nn.Linear(width, embedding_dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(C, N, W) -> (C, N, E)."""
        return self.projection(self.norm(tokens))


class Postprocessor(nn.Module):
    """Unit length, times a factor of the modality, learned for text and fixed for others."""

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        facts = FACTS[modality]
        log_scale = None if facts.logit_scale is None else torch.tensor(math.log(facts.logit_scale))
        if facts.logit_scale_learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, embedding: Tensor) -> Tensor:
        """(C, N, E) -> (C, N, E)."""
        embedding = F.normalize(embedding, dim=-1)
        if self.log_scale is None:
            return embedding
        return embedding * self.log_scale.exp().clamp(max=MAX_LOGIT_SCALE)


class ImageBindEncoder(nn.Module):
    """Encodes each modality with its own trunk into one shared space.

    `modalities` limits what is built to some of `config.trunks`; None builds all of them.
    Weights are random until a state dict is loaded. Building under
    `torch.device("meta")` takes no memory.
    """

    unit_length = True  # mixtures are of directions: lengths differ by modality and mean nothing

    def __init__(self, config: EncoderConfig, modalities: Iterable[Modality | str] | None = None) -> None:
        super().__init__()
        wanted = set(config.trunks if modalities is None else map(Modality, modalities))
        absent = sorted(wanted - set(config.trunks))
        if absent or not wanted:
            raise ValueError(
                f"the config has trunks for {', '.join(config.trunks)}, so it cannot build "
                f"{', '.join(absent) or 'an encoder of no modality'}"
            )
        self.config = config
        self.modalities: tuple[Modality, ...] = tuple(name for name in config.trunks if name in wanted)
        self.stems, self.trunks, self.heads, self.postprocessors = (nn.ModuleDict() for _ in range(4))
        for modality in self.modalities:
            trunk: TrunkConfig = config.trunks[modality]
            self.stems[modality.value] = build_stem(trunk, modality)
            self.trunks[modality.value] = build_trunk(trunk, modality)
            self.heads[modality.value] = Head(self.trunks[modality.value].output_width, config.embedding_dim)
            self.postprocessors[modality.value] = Postprocessor(modality)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Truncated normal for weights and tokens, zero for biases; a backbone comes with its own."""
        for name, parameter in self.named_parameters():
            modality = Modality(name.split(".")[1])
            if name.startswith("postprocessors."):
                continue
            if name.startswith("stems.") and self.config.trunks[modality].backbone is not None:
                continue
            leaf = name.rsplit(".", 2)[-2:]
            if leaf[0].endswith("norm"):
                parameter.fill_(1.0 if leaf[1] == "weight" else 0.0)
            elif leaf[1] == "bias":
                parameter.zero_()
            else:
                nn.init.trunc_normal_(parameter, std=INIT_STD)

    def forward(self, inputs: Mapping[Modality | str, Tensor]) -> dict[Modality, Tensor]:
        """Features (B, N, E) of each input.

        Inputs, sizes as published: vision (B, 3, 224, 224) or (B, S, 3, T, 224, 224) with T 1 or 2;
        text ids (B, 77); audio (B, 1, 128, 204) or (B, S, 1, 128, 204); depth and thermal
        (B, 1, 224, 224); imu (B, 6, 2000); point (B, points, 3). Anything of 5 or more dimensions is
        (B, S, ...): S clips that are embedded one by one, then averaged, and not normalised again.
        Without clips a feature has unit length for vision, elsewhere the length of its logit scale.
        Raises ValueError naming shape and remedy where an input does not fit.
        """
        return {Modality(name): self.stages(name, tensor).embedding for name, tensor in inputs.items()}

    def head_outputs(self, inputs: Mapping[Modality | str, Tensor]) -> dict[Modality, Tensor]:
        """Head outputs (B, N, E) of each input, before unit length and logit scale, averaged over clips.

        Image generators that were trained on ImageBind want these. Inputs and errors as in `forward`.
        """
        return {
            Modality(name): _average_clips(self.stages(name, tensor).head, tensor) for name, tensor in inputs.items()
        }

    def stages(self, modality: Modality | str, tensor: Tensor) -> EncoderStages:
        """Like `forward` for one modality, with everything on the way."""
        modality = Modality(modality)
        if modality not in self.modalities:
            raise ValueError(
                f"this encoder has no {modality} trunk, only {', '.join(self.modalities)}; "
                "ask for it when the encoder is built"
            )
        clips = _fold_clips(modality, tensor)
        stem, trunk, head, postprocessor = (
            parts[modality.value] for parts in (self.stems, self.trunks, self.heads, self.postprocessors)
        )
        stem_output = stem(clips)
        trunk_tokens = trunk(stem_output.tokens, stem_output.mask, stem_output.position)
        head_output = head(trunk.select(trunk_tokens, stem_output.read_at))
        embedding = _average_clips(postprocessor(head_output), tensor)
        return EncoderStages(stem_output.tokens, trunk_tokens, head_output, embedding)


def _fold_clips(modality: Modality, tensor: Tensor) -> Tensor:
    """(B, S, ...) -> (B * S, ...) from 5 dimensions on; fewer are left alone."""
    if tensor.ndim < CLIP_DIMENSIONS:
        return tensor
    if modality is Modality.VISION and tensor.ndim == 5 and tensor.shape[2] != 3:
        raise ValueError(
            f"vision input has shape {tuple(tensor.shape)}, and 5 dimensions are read as clips (B, S, 3, H, W); "
            "a video (B, 3, T, H, W) needs its clip axis: pass video[:, None]"
        )
    return tensor.flatten(0, 1)


def _average_clips(per_clip: Tensor, tensor: Tensor) -> Tensor:
    """(B * S, N, E) of an input (B, S, ...) -> (B, N, E); nothing to do where the input has no clips."""
    return per_clip if tensor.ndim < CLIP_DIMENSIONS else per_clip.unflatten(0, tensor.shape[:2]).mean(dim=1)
