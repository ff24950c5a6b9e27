"""The decoder hook: any LLaMA-family model of transformers, with gated adapter attention in its last layers.

The model class stays stock. Its attention function is replaced through transformers' own registry, and the
adapter's keys and values travel as keyword arguments, so nothing about an input is ever kept on a module.
Shapes: B batch, T text tokens, L adapted layers, Q query_len, D hidden size, H heads, K key/value heads, P head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .adapter import AdapterState
from .lora import LoraLinear

ATTENTION = "gated_adapter"
ADAPTER_KWARGS = ("adapter_keys", "adapter_values")


def gated_adapter_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    adapter_keys: Tensor | None = None,
    adapter_values: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Text attention plus tanh(gate) * softmax(query @ adapter_keys) @ adapter_values, a softmax of its own.

    query (B, H, T, P) is rotated, the adapter's keys are not: an adapter token has no position.
    Layers below the last L pass through untouched. Returns (B, T, H, P), as transformers expects.
    """
    output = _text_attention(module, query, key, value, attention_mask, **kwargs)
    if adapter_keys is None:
        return output, None
    layer = module.layer_idx - (module.config.num_hidden_layers - adapter_keys.shape[1])
    if layer < 0:
        return output, None
    # a decoder on several devices has its layers elsewhere than its input
    keys, values = adapter_keys[:, layer].to(query.device), adapter_values[:, layer].to(query.device)
    if keys.shape[2] == 1:  # softmax over one key is 1: the branch is a constant
        return output + values.transpose(1, 2), None
    batch, heads, length, size = query.shape
    # heads that share a key head are stacked along the text axis, so that keys are not repeated
    scores = query.reshape(batch, keys.shape[1], -1, size) @ keys.transpose(2, 3)
    weights = torch.softmax(scores * module.scaling, dim=-1).view(batch, heads, length, -1)
    return output + (weights @ values).transpose(1, 2), None


def _text_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> Tensor:
    """transformers' own (B, T, H, P), but a single token's heads that share a key head are its rows of queries.

    Keys and values then need not be repeated for each head: on a CPU that costs more than the attention itself.
    """
    batch, heads, length, size = query.shape
    groups = heads // key.shape[1]
    if length > 1 or groups == 1 or (attention_mask is not None and attention_mask.shape[1] != 1):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
    stacked, scale = query.view(batch, -1, groups, size), kwargs.get("scaling")
    output = F.scaled_dot_product_attention(stacked, key, value, attn_mask=attention_mask, scale=scale)
    return output.reshape(batch, heads, 1, size).transpose(1, 2)


AttentionInterface.register(ATTENTION, gated_adapter_attention)
# without its own mask entry a registered attention is given no mask, and left padding is silently ignored
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class AcceptsAdapter:
    """Lets `generate` pass the adapter's keyword arguments on; it refuses what `forward` does not name."""

    def _validate_model_kwargs(self, model_kwargs: dict) -> None:
        super()._validate_model_kwargs({k: v for k, v in model_kwargs.items() if k not in ADAPTER_KWARGS})


def attach_adapter(llama: PreTrainedModel) -> PreTrainedModel:
    """Make a stock decoder accept adapter keyword arguments. Without them it computes what it always did.

    Changes the instance in place and returns it. Raises ValueError for an architecture without separate
    k_proj and v_proj, or one that does not use transformers' attention registry.
    """
    if isinstance(llama, AcceptsAdapter):
        return llama
    name = type(llama).__name__
    attention = getattr(decoder_layers(llama)[0], "self_attn", None)
    if not (hasattr(attention, "k_proj") and hasattr(attention, "v_proj")):
        raise ValueError(f"{name} has no k_proj and v_proj in its layers; give a LLaMA-family model")
    llama.set_attn_implementation(ATTENTION)
    if llama.config._attn_implementation != ATTENTION:
        raise ValueError(f"{name} does not take a registered attention; give a LLaMA-family model")
    llama.__class__ = type(name, (AcceptsAdapter, type(llama)), {"__module__": type(llama).__module__})
    return llama


def decoder_layers(llama: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers, first to last; raises ValueError if it has none where LLaMA has them."""
    layers = getattr(getattr(llama, "model", None), "layers", None)
    if layers is None:
        raise ValueError(f"{type(llama).__name__} is not a LLaMA-family model: it has no model.layers")
    return layers


def execution_device(llama: PreTrainedModel) -> torch.device:
    """Where a decoder's inputs go, never meta: not every weight of one that is shared out is on a device."""
    hook = getattr(llama, "_hf_hook", None)  # accelerate's
    if getattr(hook, "execution_device", None) is not None:
        return torch.device(hook.execution_device)
    return next((p.device for p in llama.parameters() if p.device.type != "meta"), torch.device("cpu"))


def project_adapter(
    llama: PreTrainedModel, tokens: Tensor, gates: Tensor, gate_scale: Tensor | None = None
) -> AdapterState:
    """Adapter tokens (B, L, Q, D) and gates (L, H) to keys and values, by each layer's own k_proj and v_proj.

    Done once an input: the originals did it for every generated token. No rotation, no norm of the tokens, and no
    low-rank update. Values carry tanh(gate), times `gate_scale` (L,) if there is one.
    """
    layers = decoder_layers(llama)[-tokens.shape[1] :]
    keys, values = [], []
    for layer, layer_tokens in zip(layers, tokens.unbind(1), strict=True):
        attention = layer.self_attn
        shape = (*layer_tokens.shape[:2], -1, attention.head_dim)
        key = _project(attention.k_proj, layer_tokens).view(shape)
        if hasattr(attention, "k_norm"):  # Qwen 3 compares normalised keys with normalised queries
            key = attention.k_norm(key)
        keys.append(key.transpose(1, 2).to(tokens.device))
        values.append(_project(attention.v_proj, layer_tokens).view(shape).transpose(1, 2).to(tokens.device))
    keys, values = torch.stack(keys, 1), torch.stack(values, 1)
    groups = gates.shape[1] // values.shape[2]
    factors = torch.tanh(gates.float())
    if gate_scale is not None:
        factors = factors * gate_scale.float()[:, None]
    factors = factors.to(values.dtype)[None, :, :, None, None]
    return AdapterState(keys, factors * values.repeat_interleave(groups, dim=2))


def _project(projection: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens (B, Q, D) to (B, Q, K x P), where the projection is and in its type."""
    weight = projection.weight
    # weights that are fetched for each call are on the meta device until then, and bring the tokens along
    tokens = tokens.to(weight.dtype) if weight.device.type == "meta" else tokens.to(weight.device, weight.dtype)
    return projection(tokens, plain=True) if isinstance(projection, LoraLinear) else projection(tokens)
