"""Adapter tokens: what each adapted decoder layer is told, and how loudly.

Shapes: B batch, L adapted layers, Q query_len, D hidden size, H heads, K key/value heads, P head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import AdapterConfig


@dataclass(frozen=True)
class AdapterState:
    """All the decoder needs to know of an input, computed once and used for every token.

    Batch comes first, so that `generate` can repeat rows for beams and return sequences.
    """

    keys: Tensor  # (B, L, K, Q, P), not rotated
    values: Tensor  # (B, L, H, Q, P), already multiplied by their head's gate

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: slice | Tensor) -> AdapterState:
        """The state of some rows of the batch."""
        return AdapterState(self.keys[rows], self.values[rows])

    def as_kwargs(self) -> dict[str, Tensor]:
        """The keyword arguments that carry the state through the decoder to its attention."""
        return {"adapter_keys": self.keys, "adapter_values": self.values}


class AdapterTokens(nn.Module):
    """A static query a layer plus the input's query tokens, and a zero-initialised gate a head.

    adapter_l = query_l + scale_l * query_tokens. LLaMA-Adapter (arXiv:2303.16199) has no scale;
    with one, the same query tokens fit layers whose hidden states have grown to different sizes.
    `gate_scale` (L,) is a factor on tanh(gate), `new_gate` in the V2 files with LoRA.
    """

    def __init__(self, config: AdapterConfig, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(config.query_layer, config.query_len, hidden_size) * 0.02)
        self.gates = nn.Parameter(torch.zeros(config.query_layer, num_heads))
        self.scale = nn.Parameter(torch.ones(config.query_layer, hidden_size)) if config.layer_scale else None
        self.gate_scale = nn.Parameter(torch.ones(config.query_layer)) if config.gate_scale else None

    def forward(self, query_tokens: Tensor) -> Tensor:
        """(B, Q, D) to adapter tokens (B, L, Q, D)."""
        query_tokens = query_tokens[:, None]
        if self.scale is not None:
            query_tokens = query_tokens * self.scale[:, None]
        return self.queries + query_tokens
