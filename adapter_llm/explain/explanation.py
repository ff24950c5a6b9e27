"""What an explanation holds. All tensors are float32 on the CPU.

Shapes: L adapted layers, H heads, Q query_len, T text tokens (prompt and answer), A answer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from imagebind_encoder.config import Modality


@dataclass(frozen=True)
class View:
    """Where on one input the connector looked."""

    modality: Modality
    shown: Tensor  # what the model saw: a picture, uint8 (height, width, 3), or a plane of numbers (height, width)
    patch_map: Tensor  # (rows, columns), sums to 1
    extent: tuple[float, float, float, float]  # left, right, bottom and top of the map on `shown`, in pixels of it


@dataclass(frozen=True)
class Explanation:
    """How an answer came about: what was open, what was read through it, and what difference it made.

    Position t of `attention` and `contribution` is where token t is read; what is computed there decides token
    t + 1. `writing` has the positions at which the answer was decided, one for each of its tokens.
    """

    question: str
    answer: str
    tokens: tuple[str, ...]  # T texts, as they follow one another
    prompt_length: int  # how many of the tokens are the prompt's
    layers: tuple[int, ...]  # L decoder layers that are adapted, counted from 0
    gates: Tensor  # (L, H) tanh(gate), times the layer's gate_scale
    attention: Tensor  # (L, H, Q, T) each text position's weights over the adapter tokens; sums to 1 over Q
    contribution: Tensor  # (L, H, Q, T) share of a head's output that comes from an adapter token; sums to < 1 over Q
    gain: Tensor  # (A,) log-probability of each answer token, minus what it is with all gates shut
    views: tuple[View, ...]  # of pictures, of each clip of films and sounds, and of other planes

    @property
    def patch_maps(self) -> list[Tensor]:
        """Where the connector looked, one (rows, columns) map a view, each of which sums to 1."""
        return [view.patch_map for view in self.views]

    @property
    def writing(self) -> slice:
        """Positions, in T, at which the answer's tokens were decided."""
        return slice(self.prompt_length - 1, len(self.tokens) - 1)

    @property
    def share(self) -> Tensor:
        """(T,) How much of what the adapted heads put out came from the adapter, in the mean over heads and layers."""
        return self.contribution.sum(2).mean((0, 1))

    @property
    def mean_attention(self) -> Tensor:
        """(Q, T) `attention` averaged over layers and heads, each weighted by its contribution; sums to 1 over Q.

        Where nothing contributes, all count alike.
        """
        weights = self.contribution.sum(2, keepdim=True)
        total = weights.sum((0, 1), keepdim=True)
        weights = (weights / total).where(total > 0, weights.new_tensor(1 / (len(self.layers) * self.gates.shape[1])))
        return (self.attention * weights).sum((0, 1))
