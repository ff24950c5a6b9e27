"""The whole model: encoder, connector, adapter and decoder, in the order data flows through them.

It takes tensors only; paths, strings and tokenizers belong to `processing`. The four parts are given to it.
Shapes: B batch, M media items, N features an item, E encoder width, T text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from imagebind_encoder.config import Modality

from .adapter import AdapterState, AdapterTokens
from .llama import attach_adapter, project_adapter


@dataclass(frozen=True)
class MediaBatch:
    """All items of one modality in a batch of questions; a question may have any number of them."""

    tensor: Tensor  # (M, ...), what the modality's loader returns, stacked
    rows: Tensor  # (M,), the question each item belongs to
    weights: Tensor  # (M,), how much it counts among the items of its question


def mix(features: Tensor, rows: Tensor, weights: Tensor, batch_size: int, unit_length: bool = True) -> Tensor:
    """Weighted mean of the features of each row: (M, N, E) to (B, N, E).

    With `unit_length` each feature counts as its direction alone. The mean is then not normalised again, and 1e-6
    keeps its divisor from being zero, as in ImageBind-LLM. Rows without items come out as zeros.
    """
    weights = weights.to(features)
    total = weights.new_zeros(batch_size).index_add(0, rows, weights)
    if unit_length:
        features, total = F.normalize(features, dim=-1), total + 1e-6
    mixed = features.new_zeros(batch_size, *features.shape[1:])
    return mixed.index_add(0, rows, features * (weights / total[rows])[:, None, None])


def concatenate(
    features: Sequence[Tensor], rows: Sequence[int], weights: Sequence[float], batch_size: int, unit_length: bool = True
) -> list[Tensor]:
    """All features of each row behind one another: items (N, E), of any N, to batch_size times (sum of N, E).

    A connector that reads several features tells them apart by what they are, not by where they stand, so order
    does not matter to it. A feature is as long as its item's weight, relative to the mean weight in its row; items
    of weight 0 are left out. Rows without items come out as one feature of zeros.
    """
    found: list[list[tuple[Tensor, float]]] = [[] for _ in range(batch_size)]
    for feature, row, weight in zip(features, rows, weights, strict=True):
        if weight > 0:
            found[row].append((F.normalize(feature, dim=-1) if unit_length else feature, weight))
    empty = features[0].new_zeros(1, features[0].shape[-1])
    means = [sum(weight for _, weight in items) / max(len(items), 1) for items in found]
    return [
        torch.cat([feature * (weight / mean) for feature, weight in items]) if items else empty
        for items, mean in zip(found, means, strict=True)
    ]


class AdapterLLM(nn.Module):
    """A frozen decoder that reads what an encoder saw through gated adapter attention."""

    def __init__(
        self, encoder: nn.Module, connector: nn.Module, adapter: AdapterTokens, llama: PreTrainedModel
    ) -> None:
        super().__init__()
        made_for = (*adapter.gates.shape, adapter.queries.shape[-1])
        sizes = llama.config
        layers, heads, hidden = sizes.num_hidden_layers, sizes.num_attention_heads, sizes.hidden_size
        if made_for[0] > layers or made_for[1:] != (heads, hidden):
            raise ValueError(
                "the adapter was made for another language model: it needs {} layers or more, {} heads and hidden "
                "size {}, ".format(*made_for) + f"and {type(llama).__name__} has {layers}, {heads} and {hidden}"
            )
        self.encoder = encoder
        self.connector = connector
        self.adapter = adapter
        self.llama = attach_adapter(llama)

    def encode(self, media: Mapping[Modality, MediaBatch], batch_size: int) -> tuple[Tensor, Tensor]:
        """Media to mixed features (B, N, E), and which rows have any (B,)."""
        if not media:
            raise ValueError("encode needs at least one modality; without media call generate without a state")
        embedded = self.encoder({modality: batch.tensor for modality, batch in media.items()})
        batches = list(media.values())
        rows = torch.cat([batch.rows for batch in batches])
        weights = torch.cat([batch.weights for batch in batches])
        items = torch.cat([embedded[modality] for modality in media])
        features = mix(items, rows, weights, batch_size, self.encoder.unit_length)
        present = torch.zeros(batch_size, dtype=torch.bool, device=rows.device).index_fill(0, rows, True)
        return features, present

    def adapt(self, features: Tensor | Sequence[Tensor], present: Tensor | None = None) -> AdapterState:
        """Features (B, N, E), or B times (N, E) of any N, to the state the decoder reads.

        Rows that are not `present` get closed gates.
        """
        tokens = self.adapter(self._connect(features))
        state = project_adapter(self.llama, tokens, self.adapter.gates, self.adapter.gate_scale)
        if present is not None:
            state = AdapterState(state.keys, state.values * present.to(state.values)[:, None, None, None, None])
        return state

    def _connect(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Query tokens (B, Q, D). Rows of as many features go through the connector together: no padding to mask."""
        like = self.adapter.queries
        if isinstance(features, Tensor):
            return self.connector(features.to(like))
        tokens: list[Tensor | None] = [None] * len(features)
        for count in sorted({len(feature) for feature in features}):
            rows = [row for row, feature in enumerate(features) if len(feature) == count]
            found = self.connector(torch.stack([features[row] for row in rows]).to(like))
            for row, token in zip(rows, found, strict=True):
                tokens[row] = token
        return torch.stack(tokens)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, state: AdapterState | None = None, **kwargs
    ):
        """The decoder's own output for text (B, T), as the adapter state changes it. Pads have no position."""
        kwargs.setdefault("position_ids", positions(attention_mask, input_ids.shape[1]))
        return self.llama(input_ids, attention_mask=attention_mask, **adapter_kwargs(state), **kwargs)

    def loss(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        state: AdapterState,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Mean cross entropy of each token whose label is not -100, given the tokens before it; 0 if there is none.

        `weights` (B, T) makes some tokens count more than others. Logits are computed at those positions alone:
        the vocabulary is most of a small decoder's work.
        """
        output = self.llama.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=positions(attention_mask, input_ids.shape[1]),
            **adapter_kwargs(state),
        )
        targets = labels[:, 1:]
        wanted = targets != -100
        if not wanted.any():  # a mean of nothing: there is nothing to learn, and nothing is wrong
            return output.last_hidden_state.sum() * 0.0
        logits = self.llama.lm_head(output.last_hidden_state[:, :-1][wanted])
        if weights is None:
            return F.cross_entropy(logits.float(), targets[wanted])
        weights = weights[:, 1:][wanted]
        losses = F.cross_entropy(logits.float(), targets[wanted], reduction="none")
        return (losses * weights).sum() / weights.sum()

    @torch.inference_mode()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, state: AdapterState | None = None, **kwargs
    ) -> Tensor:
        """transformers' `generate`, every option of it; prompts are padded on the left."""
        return self.llama.generate(input_ids, attention_mask=attention_mask, **adapter_kwargs(state), **kwargs)


def adapter_kwargs(state: AdapterState | None) -> dict[str, Tensor]:
    return {} if state is None else state.as_kwargs()


def positions(attention_mask: Tensor | None, length: int) -> Tensor | None:
    """Position ids (B, T) of the last `length` tokens, counted without pads, as `generate` counts them.

    Text attends to text by distance, so elsewhere pads on the left shift everything and nobody notices;
    but the adapter's keys stand still, and against them a shifted query is another query.
    """
    if attention_mask is None:
        return None
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
