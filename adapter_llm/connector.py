"""Connectors: what the encoder saw, (B, N, E), in the decoder's terms, query tokens (B, Q, D).

Shapes: B batch, N features, E encoder width, W connector width, Q query_len, D decoder hidden size.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ConnectorConfig


class VisualQueryTransformer(nn.Module):
    """Learned queries read the features through pre-norm blocks (LLaMA-Adapter V2, arXiv:2304.15010)."""

    def __init__(self, config: ConnectorConfig, features_dim: int, query_len: int, hidden_size: int) -> None:
        # timm brings torchvision with it, a second of start-up that a bridge does not need
        from timm.models.vision_transformer import Block

        super().__init__()
        eps = config.norm_eps
        self.queries = nn.Parameter(torch.randn(query_len, config.width) * 0.02)
        self.input_proj = nn.Linear(features_dim, config.width)
        self.input_norm = nn.LayerNorm(config.width, eps=eps)
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.mlp_ratio,
                qkv_bias=True,
                norm_layer=partial(nn.LayerNorm, eps=eps),
            )
            for _ in range(config.depth)
        )
        self.output_proj = nn.Linear(config.width, hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, E) to (B, Q, D)."""
        tokens = self.input_norm(self.input_proj(features))
        tokens = torch.cat([self.queries.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.output_norm(self.output_proj(tokens[:, : len(self.queries)]))


class GatedFeedForward(nn.Module):
    """x + down(silu(gate(norm(x))) * up(norm(x))), LLaMA's SwiGLU as a residual block."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        # the published bridges fix these epsilons, whatever the decoder's own is
        self.norm = nn.LayerNorm(width, eps=1e-5) if bias else nn.RMSNorm(width, eps=1e-6)
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Bridge(nn.Module):
    """A projection and gated feed-forwards, token by token (ImageBind-LLM, arXiv:2309.03905).

    It keeps the number of tokens: with it `query_len` must equal the encoder's `num_cls_tokens`.
    """

    def __init__(self, config: ConnectorConfig, features_dim: int, query_len: int, hidden_size: int) -> None:
        super().__init__()
        self.query_len = query_len
        self.input_proj = nn.Linear(features_dim, hidden_size)
        hidden = int(config.mlp_ratio * hidden_size)
        self.blocks = nn.Sequential(
            *(GatedFeedForward(hidden_size, hidden, config.bias) for _ in range(config.depth))
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, Q, E) to (B, Q, D)."""
        if features.shape[1] != self.query_len:
            raise ValueError(
                f"the bridge was built for {self.query_len} features an input and got {features.shape[1]}; "
                "set query_len to the encoder's num_cls_tokens"
            )
        return self.blocks(self.input_proj(features))


CONNECTORS = {"visual_query": VisualQueryTransformer, "bridge": Bridge}


def build_connector(config: ConnectorConfig, features_dim: int, query_len: int, hidden_size: int) -> nn.Module:
    """The connector that `config.kind` names, with random weights."""
    return CONNECTORS[config.kind](config, features_dim, query_len, hidden_size)
