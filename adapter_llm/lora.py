"""What weights change in the decoder itself: low-rank updates of its linear layers, biases, norms.

A low-rank update (LoRA, arXiv:2106.09685) is y = W x + b + up(down(x)), here without a factor on it, as the published
adapters have none. For inference it is added to W once. The adapter's keys and values are made by k_proj and v_proj
without their updates, so those layers keep what was added and can take it away again.
Shapes: r rank, in and out the widths of a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import DecoderConfig

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
LINEARS = tuple(f"self_attn.{name}" for name in ATTENTION) + tuple(f"mlp.{name}" for name in MLP)
UNBIASED = ("self_attn.k_proj", "self_attn.v_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")
DOWN, UP = "lora_down", "lora_up"


@dataclass(frozen=True)
class Changes:
    """What an adapter's weights change in its decoder, and what for."""

    config: DecoderConfig
    tensors: Mapping[str, Tensor]  # those of `change_shapes`
    adapted_layers: int  # the last ones, whose plain keys and values the adapter needs
    merge: bool  # low-rank updates become part of the weights, to run; or stay parameters, to be trained


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank update, which its weight already holds if it is `merged`.

    The factors stay in float32 beside a weight of any type: they are small, and what is taken away again has to
    be what was added.
    """

    def __init__(self, base: nn.Linear, rank: int, merged: bool) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        options = {"dtype": torch.float32, "device": base.weight.device}
        self.lora_down = nn.Parameter(torch.zeros(rank, base.in_features, **options))
        self.lora_up = nn.Parameter(torch.zeros(base.out_features, rank, **options))
        self.merged = merged

    def forward(self, x: Tensor, plain: bool = False) -> Tensor:
        """(..., in) to (..., out); `plain` leaves the update out."""
        output = F.linear(x, self.weight, self.bias)
        if plain != self.merged:  # the weight is already the one that is asked for
            return output
        update = F.linear(F.linear(x.to(self.lora_down.dtype), self.lora_down), self.lora_up)
        return (output - update if plain else output + update).to(output.dtype)


def change_shapes(config: DecoderConfig, llama_config) -> dict[str, tuple[int, ...]]:
    """Every tensor that changes a decoder of these sizes, by its name in the weights folder, with its shape."""
    hidden, inner, rank = llama_config.hidden_size, llama_config.intermediate_size, config.lora_rank
    size = getattr(llama_config, "head_dim", None) or hidden // llama_config.num_attention_heads
    queries = llama_config.num_attention_heads * size
    keys = (getattr(llama_config, "num_key_value_heads", None) or llama_config.num_attention_heads) * size
    widths = dict(zip(LINEARS, (
        (hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden),
        (hidden, inner), (hidden, inner), (inner, hidden),
    ), strict=True))  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(llama_config.num_hidden_layers):
        for name, (wide_in, wide_out) in widths.items():
            prefix = f"layers.{layer}.{name}"
            if rank:
                shapes |= {f"{prefix}.{DOWN}": (rank, wide_in), f"{prefix}.{UP}": (wide_out, rank)}
            if config.biases and name not in UNBIASED:
                shapes[f"{prefix}.bias"] = (wide_out,)
        if config.norms:
            shapes |= {f"layers.{layer}.{name}.weight": (hidden,) for name in NORMS}
    if config.norms:
        shapes["norm.weight"] = (hidden,)
    return shapes


def insert_lora(layers: nn.ModuleList, rank: int, adapted_layers: int, merge: bool) -> None:
    """Replace, in place, the linear layers that keep their update beside their weight.

    Those are all of them, or, when updates are merged, the keys and values of the last `adapted_layers`: what
    projects adapter tokens.
    """
    first = len(layers) - adapted_layers if merge else 0
    for layer in layers[first:]:
        for name in UNBIASED if merge else LINEARS:
            parent, _, leaf = name.rpartition(".")
            part = layer.get_submodule(parent)
            setattr(part, leaf, LoraLinear(getattr(part, leaf), rank, merge))
