"""CLIP's vision transformer as an encoder: a picture becomes all its tokens, as LLaMA-Adapter V2 reads them.

Shapes: B batch, N features (class token and patches), E projected width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from imagebind_encoder.config import Modality

from .config import ClipConfig


class ClipEncoder(nn.Module):
    """Stands where ImageBindEncoder stands, for pictures alone."""

    unit_length = False  # the connector was trained on the tokens as they come

    def __init__(self, config: ClipConfig, modalities: Iterable[Modality | str] | None = None) -> None:
        super().__init__()
        wanted = set(config.modalities if modalities is None else map(Modality, modalities))
        if wanted != {Modality.VISION}:
            raise ValueError(f"a CLIP encoder reads pictures alone, so it cannot build {', '.join(sorted(wanted))}")
        self.config = config
        self.modalities = config.modalities
        self.vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.width,
                intermediate_size=4 * config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                image_size=config.image.size,
                patch_size=config.patch_size,
                projection_dim=config.embedding_dim,
                hidden_act="quick_gelu",
                layer_norm_eps=1e-5,
            )
        )
        embeddings = self.vision.embeddings
        # a buffer that no file holds: made on the meta device it would have no numbers
        embeddings.position_ids = torch.arange(embeddings.num_positions, device="cpu")[None]
        self.projection = nn.Linear(config.width, config.embedding_dim, bias=False)

    def forward(self, inputs: Mapping[Modality | str, Tensor]) -> dict[Modality, Tensor]:
        """{vision: (B, 3, size, size)} to features (B, N, E): CLIP projects its class token, V2 every token."""
        outputs = {}
        for name, images in inputs.items():
            modality, size = Modality(name), self.config.image.size
            if modality not in self.modalities:
                raise ValueError(f"these weights see through CLIP, which reads pictures and no {modality}")
            if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
                raise ValueError(f"vision input has shape {tuple(images.shape)} but must be (B, 3, {size}, {size})")
            tokens = self.vision(images.to(self.projection.weight.dtype)).last_hidden_state
            outputs[modality] = self.projection(self.vision.post_layernorm(tokens))
        return outputs
