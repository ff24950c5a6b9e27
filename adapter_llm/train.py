"""Training the connector and the adapter of a frozen decoder, by language-model loss on questions and answers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import trange

from .config import PromptConfig
from .data import Example, collate
from .model import AdapterLLM


@dataclass(frozen=True)
class TrainConfig:
    """The language-model stage. Rates are peaks of a one-cycle schedule."""

    steps: int = 3000
    batch_size: int = 16
    connector_rate: float = 4e-4
    tokens_rate: float = 5e-4  # static queries and layer scales
    gate_rate: float = 3e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0
    save_every: int = 500  # steps between checkpoints; 0 saves only the end


def parameter_groups(model: AdapterLLM, config: TrainConfig) -> list[dict]:
    """Parameters with their rates; the encoder and the decoder stay as they are."""
    adapter = model.adapter
    tokens = [adapter.queries, *([] if adapter.scale is None else [adapter.scale])]
    return [
        {"params": list(model.connector.parameters()), "lr": config.connector_rate},
        {"params": tokens, "lr": config.tokens_rate, "weight_decay": 0.0},
        {"params": [adapter.gates], "lr": config.gate_rate, "weight_decay": 0.0},
    ]


def batches(sample: Callable[[int], Sequence[Example]], batch_size: int, seed: int) -> Iterator[list[Example]]:
    """Batches of examples of like length, in random order: half the padding of mixed ones."""
    rng = random.Random(seed)
    while True:
        pool = sorted(sample(batch_size * 8), key=lambda example: len(example.question) + len(example.answer))
        starts = list(range(0, len(pool), batch_size))
        rng.shuffle(starts)
        yield from (pool[start : start + batch_size] for start in starts)


def fit(
    model: AdapterLLM,
    tokenizer,
    prompt: PromptConfig,
    sample: Callable[[int], Sequence[Example]],
    config: TrainConfig,
    save: Callable[[Path], None] | None = None,
    output: Path | None = None,
    evaluate: Callable[[int], None] | None = None,
) -> list[float]:
    """Train in place on batches from `sample(batch_size)`; return the loss of every step.

    The decoder may be in bfloat16, which is three times faster on processors that have it; what is trained
    stays in float32. `save(output)` and `evaluate(step)` run every `config.save_every` steps and at the end.
    """
    torch.manual_seed(config.seed)
    model.llama.requires_grad_(False).eval()
    groups = parameter_groups(model, config)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    rise = 0.05 if config.steps != 20 else 0.1  # OneCycleLR divides by zero where the rise is one step long
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], config.steps, pct_start=rise
    )
    trained = [parameter for group in groups for parameter in group["params"]]
    device = model.llama.device
    losses: list[float] = []
    started = time.monotonic()
    stream = batches(sample, config.batch_size, config.seed)
    progress = trange(config.steps, desc="language model", mininterval=10)
    for step in progress:
        batch = {name: tensor.to(device) for name, tensor in collate(next(stream), tokenizer, prompt).items()}
        state = model.adapt(batch["features"])
        loss = model.loss(batch["input_ids"], batch["attention_mask"], batch["labels"], state, batch["weights"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix_str(f"loss {sum(losses[-50:]) / len(losses[-50:]):.3f}")
        if (step + 1 == config.steps) or (config.save_every and (step + 1) % config.save_every == 0):
            recent = losses[-200:]
            mean = sum(recent) / len(recent)
            print(f"step {step + 1}, {time.monotonic() - started:.0f} s, loss {mean:.4f}", flush=True)
            if save is not None:
                save(output)
            if evaluate is not None:
                evaluate(step + 1)
    return losses
