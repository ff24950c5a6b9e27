"""LLaMA with an adapter, written out: what `adapter_llm.llama` must compute, with nothing fused, cached or shared.

`weights` is the state dict of a Hugging Face LLaMA. Shapes: T text tokens, D hidden size, H heads, K key/value
heads, P head size, L adapted layers, Q adapter tokens a layer. One text, no batch.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)


def rotate(x: Tensor, base: float) -> Tensor:
    """RoPE on (T, P): entry i turns with entry i + P/2, by position / base^(2i/P)."""
    length, size = x.shape
    angle = torch.outer(torch.arange(length), base ** (-torch.arange(0, size, 2) / size))
    first, second = x[:, : size // 2], x[:, size // 2 :]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    scores = query @ key.T / query.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    return torch.softmax(scores, dim=-1) @ value


def logits(
    weights: dict[str, Tensor],
    config,
    input_ids: Tensor,
    adapter: Tensor | None,
    gates: Tensor,
    gate_scale: Tensor | None = None,
    changes: dict[str, Tensor] | None = None,
) -> Tensor:
    """(T,) ids to (T, vocabulary) logits; adapter (L, Q, D), gates (L, H), scale (L,) belong to the last L layers.

    `changes` are norms that replace the decoder's, biases, and low-rank updates, named as in a weights folder.
    """
    heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    eps, base = config.rms_norm_eps, config.rope_parameters["rope_theta"]
    first_adapted = config.num_hidden_layers - len(gates)
    changes = changes or {}

    def norm(x: Tensor, name: str) -> Tensor:
        return rms_norm(x, changes.get(f"{name}.weight", weights[f"model.{name}.weight"]), eps)

    def linear(x: Tensor, name: str) -> Tensor:
        y = x @ weights[f"model.{name}.weight"].T
        if f"{name}.lora_up" in changes:
            y = y + (x @ changes[f"{name}.lora_down"].T) @ changes[f"{name}.lora_up"].T
        return y + changes.get(f"{name}.bias", 0)

    x = weights["model.embed_tokens.weight"][input_ids]
    for layer in range(config.num_hidden_layers):
        this = f"layers.{layer}"
        normed = norm(x, f"{this}.input_layernorm")
        queries, keys, values = (linear(normed, f"{this}.self_attn.{name}_proj") for name in "qkv")
        outputs = []
        for head in range(heads):
            q = slice(head * config.head_dim, (head + 1) * config.head_dim)
            kv = slice(head // groups * config.head_dim, (head // groups + 1) * config.head_dim)
            query = rotate(queries[:, q], base)
            output = attend(query, rotate(keys[:, kv], base), values[:, kv], causal=True)
            if adapter is not None and layer >= first_adapted:
                row = layer - first_adapted
                # neither normalised nor rotated, for they have no position; and by the weights nothing has changed
                key, value = (
                    adapter[row] @ weights[f"model.{this}.self_attn.{name}_proj.weight"][kv].T for name in "kv"
                )
                gate = torch.tanh(gates[row, head]) * (1 if gate_scale is None else gate_scale[row])
                output = output + gate * attend(query, key, value, causal=False)
            outputs.append(output)
        x = x + linear(torch.cat(outputs, dim=-1), f"{this}.self_attn.o_proj")
        normed = norm(x, f"{this}.post_attention_layernorm")
        inner = silu(linear(normed, f"{this}.mlp.gate_proj")) * linear(normed, f"{this}.mlp.up_proj")
        x = x + linear(inner, f"{this}.mlp.down_proj")
    return norm(x, "norm") @ weights["lm_head.weight"].T
