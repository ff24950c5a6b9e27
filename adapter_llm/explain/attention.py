"""What the decoder reads through its adapter: one forward pass whose adapter attention is written down.

Shapes: L adapted layers, H heads, K key/value heads, Q query_len, T text tokens, P head size. One text, no batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from ..adapter import AdapterState
from ..llama import ATTENTION, gated_adapter_attention
from ..model import AdapterLLM

RECORDED = "recorded_adapter"
_one_at_a_time = Lock()  # the name of a decoder's attention is one setting for all threads


@dataclass(frozen=True)
class Recording:
    """What one pass did."""

    logits: Tensor  # (kept positions, vocabulary)
    attention: Tensor  # (L, H, Q, T) softmax weights of each position over the adapter tokens
    contribution: Tensor  # (L, H, Q, T) share of each adapter token in a head's output


def record(model: AdapterLLM, input_ids: Tensor, state: AdapterState, keep: int) -> Recording:
    """Run the decoder over a text (1, T) with its state; logits are those of the last `keep` positions.

    The logits are those of an ordinary pass, bit for bit: the same functions run, and what they are given is looked
    at beside them. Contributions follow norms (Kobayashi et al., arXiv:2004.10102): attention weight times gated
    value, over the sum of all of them and the text's own output of that head. Weights alone mislead where values
    are small, gates alone where the text says more.
    """
    layers: dict[int, tuple[Tensor, Tensor]] = {}

    def note(layer: int, query: Tensor, text: Tensor) -> None:
        keys, values = (part[0, layer].to(query.device).float() for part in (state.keys, state.values))
        scores = query[0].float().unflatten(0, (len(keys), -1)) @ keys.mT[:, None]  # heads that share a key
        weights = torch.softmax(scores.flatten(0, 1) * scaling, dim=-1).mT  # (H, Q, T)
        parts = weights * values.norm(dim=-1, keepdim=True)
        whole = parts.sum(1, keepdim=True) + text[0].float().norm(dim=-1).T[:, None]
        layers[layer] = weights.cpu(), (parts / whole.clamp(min=torch.finfo(whole.dtype).tiny)).cpu()

    scaling = model.llama.model.layers[-1].self_attn.scaling
    with _recording(model.llama):
        output = model(input_ids, state=state, use_cache=False, logits_to_keep=keep, adapter_record=note)
    weights, contributions = zip(*(layers[layer] for layer in sorted(layers)), strict=True)
    return Recording(output.logits[0].float().cpu(), torch.stack(weights), torch.stack(contributions))


def recorded_adapter_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    adapter_record: Callable[[int, Tensor, Tensor], None] | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """`gated_adapter_attention`; `adapter_record` is told the adapted layer, its queries and its text's own output.

    Other threads' calls in the meantime carry no `adapter_record` and are none the wiser.
    """
    output = gated_adapter_attention(module, query, key, value, attention_mask, **kwargs)
    if adapter_record is not None:
        keys = kwargs.pop("adapter_keys")
        layer = module.layer_idx - (module.config.num_hidden_layers - keys.shape[1])
        if layer >= 0:
            text, _ = gated_adapter_attention(module, query, key, value, attention_mask, **kwargs, adapter_keys=None)
            adapter_record(layer, query, text)
    return output


AttentionInterface.register(RECORDED, recorded_adapter_attention)
AttentionMaskInterface.register(RECORDED, sdpa_mask)


@contextmanager
def _recording(llama: PreTrainedModel) -> Iterator[None]:
    with _one_at_a_time:
        llama.set_attn_implementation(RECORDED)
        try:
            yield
        finally:
            llama.set_attn_implementation(ATTENTION)
