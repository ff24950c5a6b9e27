"""The next token of each row: every row draws by its own options and from its own random numbers.

So a row says the same alone and among others. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from .results import GenerationOptions

LEAST = 1e-30  # of a temperature that float32 can divide by


def generator(seed: int | None, device: torch.device) -> Generator | None:
    """A row's random numbers; None takes the program's own."""
    return None if seed is None else Generator(device).manual_seed(seed)


def draw(
    logits: Tensor, options: Sequence[GenerationOptions], generators: Sequence[Generator | None]
) -> list[int | None]:
    """One token a row from logits (B, V), float32, None for a row of which one is no number.

    Rows of the same settings are prepared together.
    """
    best = logits.max(-1)
    sound = best.values.isfinite().tolist()
    tokens = [token if row else None for token, row in zip(best.indices.tolist(), sound, strict=True)]
    alike: dict[tuple[float, float], list[int]] = {}
    for row, chosen in enumerate(options):
        if chosen.temperature > 0 and sound[row]:
            alike.setdefault((chosen.temperature, chosen.top_p), []).append(row)
    for (temperature, top_p), rows in alike.items():
        shares = probabilities(logits[rows], temperature, top_p)
        for row, share in zip(rows, shares, strict=True):
            tokens[row] = int(torch.multinomial(share, 1, generator=generators[row]))
    return tokens


def probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """(B, V) What is drawn from, at a temperature above 0.

    It is the originals' distribution, but for one case: a token whose likelier ones add up to exactly top_p is left
    out here and was kept there.
    """
    # from the largest down, no temperature makes them infinite but by being nothing itself
    logits = logits - logits.amax(-1, keepdim=True)
    scores = TemperatureLogitsWarper(max(temperature, LEAST))(None, logits)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(-1)
