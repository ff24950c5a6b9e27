"""Answers that are written together: a row joins at any time, and leaves as soon as it has ended.

Rows of different lengths are padded on the left, where a mask hides the padding; positions are counted without it.
So what a row says does not depend on its neighbours. Shapes: B rows, T text tokens, P past positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from .adapter import AdapterState
from .model import AdapterLLM
from .processing import padded
from .sampling import draw
from .writing import Draft


class RunningBatch:
    """Not for several threads at once."""

    def __init__(self, model: AdapterLLM, pad_token_id: int, device: torch.device) -> None:
        self.drafts: list[Draft] = []
        self._model, self._pad, self._device = model, pad_token_id, device
        self._cache: DynamicCache | None = None
        self._mask: Tensor | None = None  # (B, P + 1): what was read, and the token that is to be read next
        self._state: AdapterState | None = None  # None: no row has media

    def __len__(self) -> int:
        return len(self.drafts)

    @torch.inference_mode()
    def join(self, drafts: Sequence[Draft]) -> list[Draft]:
        """Read the prompts, and what there is of the answers, together, and draw a token each; those that ended.

        If this raises, the batch is as it was.
        """
        for draft in drafts:
            draft.begin()
        full = [draft for draft in drafts if draft.finish_reason is not None]
        drafts = [draft for draft in drafts if draft.finish_reason is None]
        if not drafts:
            return full
        input_ids, mask = padded([draft.input_ids + draft.ids for draft in drafts], self._pad, self._device)
        state = _side_by_side([draft.state for draft in drafts])
        # without a config every layer keeps all that it reads: windows of attention are the mask's affair
        cache = DynamicCache()
        logits = self._forward(input_ids, mask, state, cache)
        tokens = _draw(drafts, logits)
        mask = F.pad(mask, (0, 1), value=1)
        if self._cache is None:
            self.drafts, self._cache, self._mask, self._state = list(drafts), cache, mask, state
        else:
            parts = [(self._state, len(self.drafts)), (state, len(drafts))]
            merged = _side_by_side([part for part, _ in parts], [count for _, count in parts])
            self._mask = _merge(self._cache, cache, self._mask, mask)
            self.drafts, self._state = [*self.drafts, *drafts], merged
        _add(drafts, tokens, logits)
        return full + self._sort_out()

    @torch.inference_mode()
    def step(self) -> list[Draft]:
        """Write one more token of each; those that ended with it have left."""
        if not self.drafts:
            return []
        last = torch.tensor([draft.ids[-1:] for draft in self.drafts], device=self._device)
        logits = self._forward(last, self._mask, self._state, self._cache)
        tokens = _draw(self.drafts, logits)
        self._mask = F.pad(self._mask, (0, 1), value=1)
        _add(self.drafts, tokens, logits)
        return self._sort_out()

    @torch.inference_mode()
    def leave(self, draft: Draft) -> None:
        """Take a row out, whatever there is of its answer; one that is not there is no matter."""
        if draft in self.drafts:
            draft.end("cancelled")
            self._sort_out()

    def clear(self) -> list[Draft]:
        """Forget all rows, and return them: they may join again and go on where they were."""
        drafts, self.drafts = self.drafts, []
        self._cache = self._mask = self._state = None
        return drafts

    def _forward(self, input_ids: Tensor, mask: Tensor, state: AdapterState | None, cache: DynamicCache) -> Tensor:
        output = self._model(input_ids, mask, state, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].to(self._device, torch.float32)

    def _sort_out(self) -> list[Draft]:
        ended = [draft for draft in self.drafts if draft.finish_reason is not None]
        if not ended:
            return []
        stay = [row for row, draft in enumerate(self.drafts) if draft.finish_reason is None]
        if not stay:
            self.clear()
            return ended
        self.drafts = [self.drafts[row] for row in stay]
        rows = torch.tensor(stay, device=self._mask.device)
        mask = self._mask[rows]
        unused = int(mask.any(0).long().argmax())  # positions that only padded rows have left
        self._mask = mask[:, unused:]
        for layer in self._cache.layers:
            own = rows.to(layer.keys.device)
            layer.keys, layer.values = (part[own, :, unused:] for part in (layer.keys, layer.values))
        if self._state is not None:
            self._state = self._state[rows.to(self._state.keys.device)]
        return ended


def _draw(drafts: Sequence[Draft], logits: Tensor) -> list[int | None]:
    return draw(logits, [draft.options for draft in drafts], [draft.generator for draft in drafts])


def _add(drafts: Sequence[Draft], tokens: Sequence[int | None], logits: Tensor) -> None:
    for draft, token, row in zip(drafts, tokens, logits, strict=True):
        draft.add(token, row)


def _merge(cache: DynamicCache, other: DynamicCache, mask: Tensor, other_mask: Tensor) -> Tensor:
    """Append the rows of another cache, and return the mask of both."""
    length = max(mask.shape[1], other_mask.shape[1])
    missing = [length - part.shape[1] for part in (mask, other_mask)]
    for layer, more in zip(cache.layers, other.layers, strict=True):
        for name in ("keys", "values"):
            parts = (getattr(layer, name), getattr(more, name))
            wide = [F.pad(part, (0, 0, left, 0)) for part, left in zip(parts, missing, strict=True)]
            setattr(layer, name, torch.cat(wide))
    return torch.cat([F.pad(part, (left, 0)) for part, left in zip((mask, other_mask), missing, strict=True)])


def _side_by_side(
    states: Sequence[AdapterState | None], counts: Sequence[int] | None = None
) -> AdapterState | None:
    """The state of all rows; rows without one get closed gates. `counts` are those rows' numbers, else 1 each."""
    like = next((state for state in states if state is not None), None)
    if like is None:
        return None
    counts = counts or [1] * len(states)

    def joined(name: str) -> Tensor:
        rows = getattr(like, name)[:1]
        nothing = torch.zeros_like(rows)
        parts = [
            nothing.expand(count, *rows.shape[1:]) if state is None else getattr(state, name)
            for state, count in zip(states, counts, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return AdapterState(joined("keys"), joined("values"))
