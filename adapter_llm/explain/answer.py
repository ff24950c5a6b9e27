"""An answer and its explanation: asked like any question, then run through once more, watched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..adapter import AdapterTokens
from ..encoding import encode_items
from ..processing import LoadedItem
from ..writing import TOKENS_BEFORE, token_text
from .attention import record
from .explanation import Explanation, View
from .rollout import connector_rollout
from .views import views

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@torch.inference_mode()
def explain(pipe: Any, prompt: Any = None, written: Sequence[int] | None = None, **inputs: Any) -> Explanation:
    """The answer of `pipe.ask` with the same arguments, or the one that was `written`, and how it came about.

    Costs the answer, one pass of the decoder over prompt and answer with the adapter and one without, and a second
    look at each input. With a `state` there are no views: what it was made of is no longer known. Raises what `ask`
    raises, and ValueError if there are neither media nor a state: the language model then answers alone.
    """
    request = pipe.perception.request(prompt, inputs)
    if not request.seen and request.state is None:
        raise ValueError("there is nothing to explain: without media or a state the language model answers alone")
    model, answerer, tokenizer = pipe.model, pipe.answerer, pipe.processor.tokenizer
    state, features, encoded = request.state, None, []
    if request.seen:
        features, encoded = _features(pipe, request.seen)
        state = model.adapt(features)
    if written is None:
        written = answerer.generate([request.question], state, [True], request.options)[0]
    answer = list(written)
    asked = pipe.processor.tokenize([request.question], [True], pipe.device)[0]
    text = torch.cat([asked, asked.new_tensor([answer])], dim=1)
    recording = record(model, text, state, keep=len(answer) + 1)
    question, gates = request.question, gate_factors(model.adapter)
    return Explanation(
        question=question if isinstance(question, str) else question[-1]["content"],
        answer=tokenizer.decode(answer, skip_special_tokens=True).strip(),
        tokens=tuple(token_texts(tokenizer, text[0].tolist())),
        prompt_length=asked.shape[1],
        layers=tuple(range(model.llama.config.num_hidden_layers))[-len(gates) :],
        gates=gates,
        attention=recording.attention,
        contribution=recording.contribution,
        gain=_log_probabilities(recording.logits, answer) - _log_probabilities(_plain(model, text, answer), answer),
        views=tuple(_views(pipe, request.seen, features, encoded, recording.contribution)),
    )


def gate_factors(adapter: AdapterTokens) -> Tensor:
    """(L, H) What each head's adapter branch is multiplied by."""
    factors = torch.tanh(adapter.gates.detach().float())
    if adapter.gate_scale is not None:
        factors = factors * adapter.gate_scale.detach().float()[:, None]
    return factors.cpu()


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Iterator[str]:
    """What each token adds to the text; a character of several tokens is the last one's, and "\ufffd" the others'."""
    for end, token in enumerate(ids):
        yield token_text(tokenizer, ids[max(0, end - TOKENS_BEFORE) : end], token)


def _features(pipe: Any, seen: Any) -> tuple[Tensor | list[Tensor], list[LoadedItem]]:
    """What the connector reads, as `pipe.perception` has it, and each item with its own features."""
    perception = pipe.perception
    found = encode_items(pipe.model.encoder, seen.items, perception.device)
    encoded = [
        replace(item, tensor=None, windows=None, features=feature)
        for item, feature in zip(seen.items, found, strict=True)
    ]
    return perception.features([encoded], seen.options, seen.retrieval), encoded


def _views(
    pipe: Any, seen: Any, features: Tensor | list[Tensor] | None, encoded: list[LoadedItem], contribution: Tensor
) -> Iterator[View]:
    """The views of all items that weigh something, by what the decoder took of each query token."""
    if features is None:
        return
    taken = contribution.sum((0, 1, 3))  # (Q,)
    taken = taken / taken.sum() if taken.sum() > 0 else torch.full_like(taken, 1 / len(taken))
    attention = taken @ connector_rollout(pipe.model.connector, features[0])  # (N,)
    side_by_side, start = isinstance(features, list), 0
    for item, known in zip(seen.items, encoded, strict=True):
        if item.weight == 0:
            continue
        count = len(known.features)
        yield from views(pipe.model.encoder, item, attention[start : start + count], pipe.perception.device)
        start += count if side_by_side else 0


def _plain(model: Any, text: Tensor, answer: Sequence[int]) -> Tensor:
    """Logits of the last positions with the adapter out of the way."""
    return model(text, use_cache=False, logits_to_keep=len(answer) + 1).logits[0].float().cpu()


def _log_probabilities(logits: Tensor, answer: Sequence[int]) -> Tensor:
    """(A,) of an answer's tokens, by the logits (A + 1, vocabulary) of the position before it and its own."""
    return torch.log_softmax(logits[:-1], dim=-1).gather(1, torch.tensor(answer, dtype=torch.long)[:, None])[:, 0]
