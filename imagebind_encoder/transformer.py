"""The pre-norm transformer between stem and head, one shape for all modalities.

Shapes: B batch, T tokens, W width, H heads, P = W / H.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import FACTS, Modality, TrunkConfig
from .modalities import NORM_EPS, ModalityFacts


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection, stacked q, k, v.

    With `bias_kv` every sample also attends to one learned key and value that no
    token made. They join after the projection, in last place, before the heads split.
    """

    def __init__(self, width: int, heads: int, bias_kv: bool, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)
        for name in ("bias_k", "bias_v"):
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, width)) if bias_kv else None)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, W) -> (B, T, W); `mask` (T, T) is true where row may look at column."""
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        if self.bias_k is not None:
            batch = len(tokens)
            key = torch.cat([key, self.bias_k.expand(batch, -1, -1)], dim=1)
            value = torch.cat([value, self.bias_v.expand(batch, -1, -1)], dim=1)
            if mask is not None:
                mask = F.pad(mask, (0, 1), value=True)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, H, T, P)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers around the exact (erf) GELU; the tanh form is measurably different."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        return self.down(F.gelu(self.up(tokens)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TrunkConfig, facts: ModalityFacts) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=facts.norm_eps)
        self.attention = Attention(config.width, config.heads, facts.bias_kv, facts.qkv_bias)
        self.mlp_norm = nn.LayerNorm(config.width, eps=facts.norm_eps)
        self.mlp = MLP(config.width, round(config.width * config.mlp_ratio))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        tokens = tokens + self.attention(self.attention_norm(tokens), mask)
        return tokens + self.mlp(self.mlp_norm(tokens))


class Trunk(nn.Module):
    """The blocks of one modality. The norm that ends a pre-norm stack belongs to the head."""

    def __init__(self, config: TrunkConfig, modality: Modality) -> None:
        super().__init__()
        facts = FACTS[modality]
        self.num_cls_tokens = config.num_cls_tokens
        self.output_width = config.width  # of what `select` gives
        self.pre_norm = nn.LayerNorm(config.width, eps=NORM_EPS) if facts.pre_norm else None
        self.blocks = nn.ModuleList(Block(config, facts) for _ in range(config.depth))

    def forward(self, tokens: Tensor, mask: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        """(B, T, W) -> (B, T, W); `mask` (T, T) is true where row may look at column, `position` (B, T, W)
        is added before every block."""
        if self.pre_norm is not None:
            tokens = self.pre_norm(tokens)
        for block in self.blocks:
            tokens = block(tokens if position is None else tokens + position, mask)
        return tokens

    def select(self, tokens: Tensor, read_at: Tensor | None = None) -> Tensor:
        """What the head makes features of, (B, N, output_width): tokens (B, T, W) at `read_at` (B, N),
        by default the first N."""
        if read_at is None:
            return tokens[:, : self.num_cls_tokens]
        return tokens[torch.arange(len(tokens), device=tokens.device).unsqueeze(1), read_at]


def build_trunk(config: TrunkConfig, modality: Modality) -> nn.Module:
    """The trunk of one modality, parameters not yet initialised."""
    if modality is Modality.POINT:
        from .point import PointTrunk  # few encoders have one

        return PointTrunk(config)
    return Trunk(config, modality)
