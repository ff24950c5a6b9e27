"""Attention rollout: how much each token at the end of a transformer took from each token at its beginning.

Abnar and Zuidema, arXiv:2005.00928: every block mixes tokens half by its attention, averaged over heads, and half by
passing them on; the mixtures of all blocks are multiplied. Shapes: T tokens, W width, N features, Q query tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from imagebind_encoder.transformer import Trunk

from ..clip import ClipEncoder
from ..connector import Bridge, VisualQueryTransformer


def head_mean(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Queries and keys (T, W) to softmax weights (T, T), averaged over heads."""
    query, key = (x.float().unflatten(-1, (heads, -1)).transpose(0, 1) for x in (query, key))
    return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1).mean(0)


def rollout(blocks: Iterable[Tensor], count: int) -> Tensor:
    """Weights (T, T) of each block, first to last, to shares (T, T) of what left them in what entered them."""
    shares = torch.eye(count)
    for weights in blocks:
        weights = weights.cpu()
        shares = (weights + torch.eye(count)) / 2 @ shares
    return shares


@torch.inference_mode()
def trunk_rollout(trunk: Trunk, tokens: Tensor) -> Tensor:
    """Tokens (T, W) of a stem to shares (T, T).

    The learned extra key of some modalities is no token: what it took is left out, and the rest scaled up to 1.
    """

    def weights():
        x = tokens[None] if trunk.pre_norm is None else trunk.pre_norm(tokens[None])
        for block in trunk.blocks:
            query, key, _ = block.attention.qkv(block.attention_norm(x))[0].chunk(3, dim=-1)
            yield head_mean(query, key, block.attention.heads)
            x = block(x)

    return rollout(weights(), len(tokens))


@torch.inference_mode()
def clip_rollout(encoder: ClipEncoder, image: Tensor) -> Tensor:
    """A picture (3, size, size) to shares (T, T), the class token first."""
    vision = encoder.vision
    states = vision(image[None].to(encoder.projection.weight.dtype), output_hidden_states=True).hidden_states

    def weights():
        for layer, state in zip(vision.encoder.layers, states[:-1], strict=True):
            attention, x = layer.self_attn, layer.layer_norm1(state[0])
            yield head_mean(attention.q_proj(x), attention.k_proj(x), attention.num_heads)

    return rollout(weights(), states[0].shape[1])


@torch.inference_mode()
def connector_rollout(connector: VisualQueryTransformer | Bridge, features: Tensor) -> Tensor:
    """Features (N, E) to the share (Q, N) of each in every query token; sums to 1 over N.

    Of what the learned queries took from themselves nothing came from the input, so that is left out.
    """
    if isinstance(connector, Bridge):
        return torch.eye(len(features))
    learned = connector.queries
    entering = connector.input_norm(connector.input_proj(features.to(learned.device, learned.dtype)))
    entering = torch.cat([learned, entering])[None]

    def weights():
        x = entering
        for block in connector.blocks:
            query, key, _ = block.attn.qkv(block.norm1(x))[0].chunk(3, dim=-1)
            yield head_mean(query, key, block.attn.num_heads)
            x = block(x)

    shares = rollout(weights(), entering.shape[1])[: len(learned), len(learned) :]
    return shares / shares.sum(1, keepdim=True)
