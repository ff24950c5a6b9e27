"""Native warm start: before any training, tell the decoder things in its own words.

Adapter tokens go through a layer's k_proj and v_proj, just as the layer's own normalised input does. So a good
adapter token for "goldfish" is what that layer sees at the word "goldfish". Those inputs are collected for many
texts; the mean of a layer becomes its static query, and the connector is regressed on the rest.
Shapes: M texts, L adapted layers, Q query_len, D hidden size, N features, E encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import trange

from .adapter import AdapterTokens
from .llama import decoder_layers


@torch.no_grad()
def native_tokens(
    llama: nn.Module,
    tokenizer,
    texts: Sequence[tuple[str, str]],
    query_layer: int,
    query_len: int,
    batch_size: int = 64,
) -> Tensor:
    """What the last L layers see at the words of each (lead, words), stretched over Q slots: (M, L, Q, D).

    `lead` is only context ("This is a photo of"); `words` are what the tokens shall say. Stored in float16.
    """
    layers = decoder_layers(llama)[-query_layer:]
    seen: list[Tensor] = [None] * query_layer
    hooks = [
        layer.input_layernorm.register_forward_hook(lambda _m, _i, output, k=k: seen.__setitem__(k, output))
        for k, layer in enumerate(layers)
    ]
    starts = [len(tokenizer(lead, add_special_tokens=False).input_ids) for lead, _ in texts]
    ids = [tokenizer(f"{lead} {words}", add_special_tokens=False).input_ids for lead, words in texts]
    by_length = sorted(range(len(texts)), key=lambda row: len(ids[row]))
    found = torch.empty(len(texts), query_layer, query_len, llama.config.hidden_size, dtype=torch.float16)
    try:
        for begin in trange(0, len(texts), batch_size, desc="native tokens", mininterval=5):
            rows = by_length[begin : begin + batch_size]
            longest = max(len(ids[row]) for row in rows)
            # padded on the right, where no word looks
            llama.model(torch.tensor([ids[row] + [0] * (longest - len(ids[row])) for row in rows], device=llama.device))
            slots = torch.stack(
                [torch.linspace(starts[row], len(ids[row]) - 1e-3, query_len + 1)[:-1].long() for row in rows]
            ).to(llama.device)
            batch = torch.arange(len(rows), device=llama.device)[:, None]
            found[rows] = torch.stack([hidden[batch, slots] for hidden in seen], dim=1).to(found)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def share(targets: Tensor, scale: Tensor | None, rounds: int = 4) -> tuple[Tensor, Tensor, float]:
    """The query tokens (M, Q, D) all layers can share, the scale (L, D) that fits them best, variance explained.

    Minimises the sum over layers of (target_l - scale_l * tokens)^2 / power_l by turns, from `scale` on; with
    None the scale stays 1. Dividing by a layer's power keeps deep layers, which are louder, from deciding alone.
    `targets` (M, L, Q, D) are deviations from their mean over texts.
    """
    layers, size = targets.shape[1], targets.shape[3]
    power = torch.stack([layer.float().square().mean() for layer in targets.unbind(1)])
    fitted = torch.ones(layers, size) if scale is None else scale.clone()
    tokens = None
    for _ in range(1 if scale is None else rounds):
        weight = (fitted.square() / power[:, None]).sum(0)
        tokens = sum(targets[:, k].float() * fitted[k] / power[k] for k in range(layers)) / weight
        if scale is not None:
            energy = tokens.square().sum((0, 1)).clamp(min=1e-6)
            fitted = torch.stack([(targets[:, k].float() * tokens).sum((0, 1)) / energy for k in range(layers)])
    missed = sum((targets[:, k].float() - fitted[k] * tokens).square().mean() / power[k] for k in range(layers))
    return tokens, fitted, 1 - float(missed) / layers


def regress(
    connector: nn.Module,
    adapter: AdapterTokens,
    targets: Tensor,
    sample: Callable[[int], tuple[Tensor, Tensor]],
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    gate: float = 0.4,
) -> float:
    """Set static queries, scales and gates from native tokens, and fit the connector to what layers share.

    `targets` (M, L, Q, D) are changed in place; `sample(batch_size)` gives features (B, N, E) and their rows of
    `targets`. Returns the share of the variance of the shared tokens that the connector explains at the end.
    """
    mean = targets.float().mean(0)
    targets -= mean.to(targets)
    start = None if adapter.scale is None else targets.float().square().mean((0, 2)).sqrt()
    tokens, scale, explained = share(targets, start)
    print(f"one set of query tokens explains {explained:.3f} of what {targets.shape[1]} layers see")
    size = tokens.square().mean((0, 1)).sqrt()  # the connector ends in a norm: let the scale carry the size
    if adapter.scale is None:
        size = torch.ones_like(size)
    tokens = tokens / size
    with torch.no_grad():
        adapter.queries.copy_(mean)
        adapter.gates.fill_(gate)
        if adapter.scale is not None:
            adapter.scale.copy_(scale * size)
    optimizer = torch.optim.AdamW(connector.parameters(), learning_rate, weight_decay=0.01)
    rise = 0.1 if steps != 10 else 0.2  # OneCycleLR divides by zero where the rise is one step long
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=rise)
    recent: list[float] = []
    progress = trange(steps, desc="warm start", mininterval=5)
    variance = float(tokens.square().mean())
    for _ in progress:
        features, rows = sample(batch_size)
        loss = (connector(features) - tokens[rows]).square().mean() / variance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent = [*recent[-49:], loss.item()]
        progress.set_postfix_str(f"variance explained {1 - sum(recent) / len(recent):.3f}")
    return 1 - sum(recent) / len(recent)
