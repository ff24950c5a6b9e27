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


def logits(weights: dict[str, Tensor], config, input_ids: Tensor, adapter: Tensor | None, gates: Tensor) -> Tensor:
    """(T,) ids to (T, vocabulary) logits; adapter (L, Q, D) and gates (L, H) belong to the last L layers."""
    heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    eps, base = config.rms_norm_eps, config.rope_parameters["rope_theta"]
    first_adapted = config.num_hidden_layers - len(gates)
    x = weights["model.embed_tokens.weight"][input_ids]
    for layer in range(config.num_hidden_layers):
        w = {name: weights[f"model.layers.{layer}.{name}.weight"] for name in (
            "input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        )}  # fmt: skip
        wq, wk, wv = (w[f"self_attn.{name}_proj"] for name in "qkv")
        normed = rms_norm(x, w["input_layernorm"], eps)
        outputs = []
        for head in range(heads):
            q = slice(head * config.head_dim, (head + 1) * config.head_dim)
            kv = slice(head // groups * config.head_dim, (head // groups + 1) * config.head_dim)
            query = rotate(normed @ wq[q].T, base)
            output = attend(query, rotate(normed @ wk[kv].T, base), normed @ wv[kv].T, causal=True)
            if adapter is not None and layer >= first_adapted:
                tokens = adapter[layer - first_adapted]  # neither normalised nor rotated: they have no position
                said = attend(query, tokens @ wk[kv].T, tokens @ wv[kv].T, causal=False)
                output = output + torch.tanh(gates[layer - first_adapted, head]) * said
            outputs.append(output)
        x = x + torch.cat(outputs, dim=-1) @ w["self_attn.o_proj"].T
        normed = rms_norm(x, w["post_attention_layernorm"], eps)
        x = x + (silu(normed @ w["mlp.gate_proj"].T) * (normed @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
    return rms_norm(x, weights["model.norm.weight"], eps) @ weights["lm_head.weight"].T
