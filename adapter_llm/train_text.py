"""A text trunk for the default space: distilled from a sentence encoder, on texts alone.

Most of what a short text means is in which words it has, so the words come first: their embeddings are regressed
on the sentences' as weighted bags, which costs a hundredth of an example through the blocks. The blocks then
start as exactly that bag, and learn what order and grammar add to it.
Shapes: M texts, T tokens (at most the context), V vocabulary, W width of the trunk, H heads, N class tokens, E.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from imagebind_encoder.config import EncoderConfig, Modality, TextStemConfig, TrunkConfig
from imagebind_encoder.media.text import tokenize, vocabulary_texts
from imagebind_encoder.modeling import ImageBindEncoder
from imagebind_encoder.stems import TextStem

WORD_STD = 0.3  # of token embeddings at the start, against 0.02 of all else
SORTED_BATCHES = 16  # drawn at once and sorted by length, so that a batch has little padding


@dataclass(frozen=True)
class DistilConfig:
    """Settings of a distillation."""

    word_steps: int = 1500
    word_batch: int = 2048
    word_rate: float = 3e-3
    steps: int = 1500
    batch_size: int = 256
    rate: float = 1e-3
    full_share: float = 0.06  # of the steps, the last ones, whose texts are padded to the whole context
    warm_up: int = 50
    weight_decay: float = 0.01
    seed: int = 0


def text_trunk(width: int = 256, depth: int = 4, heads: int = 4) -> TrunkConfig:
    """The default text trunk: 30 MB in half precision, 25 of them token embeddings. Two features as photos have."""
    return TrunkConfig(width=width, depth=depth, heads=heads, num_cls_tokens=2, mlp_ratio=2.0)


def distil_text(
    texts: Sequence[str], sentences: Callable[[Sequence[str]], Tensor], trunk: TrunkConfig | None = None,
    config: DistilConfig = DistilConfig(), report: Callable[[int, float], None] | None = None,
) -> ImageBindEncoder:
    """An encoder of text alone whose every feature of a text is near `sentences([text])`, learned from `texts`.

    `sentences` gives unit vectors (M, E), as `SentenceEncoder` does; texts that occur often count more if they are
    repeated. `report(step, loss)` is called at every step, first of the words, then of the blocks.
    """
    vectors = sentences(vocabulary_texts())
    encoder = ImageBindEncoder(EncoderConfig(vectors.shape[1], {Modality.TEXT: trunk or text_trunk()}))
    ids = tokenize(texts, stem=encoder.config.trunks[Modality.TEXT].stem).int()
    targets = sentences(texts)
    start_words(encoder, vectors)
    fit_words(encoder, ids, targets, config, report)
    distil(encoder, ids, targets, config, report)
    return encoder.eval()


@torch.no_grad()
def start_words(encoder: ImageBindEncoder, vectors: Tensor) -> None:
    """Token embeddings and head from what the sentence encoder says of each token's text, `vectors` (V, E).

    The head becomes the W principal directions of the vectors (W at most E), an embedding its coordinates in them.
    Features get unit length, as photos have: nothing here needs the logit scale that contrastive training learns.
    """
    stem, head = encoder.stems["text"], encoder.heads["text"]
    width = stem.token_embedding.weight.shape[1]
    values, directions = torch.linalg.eigh(vectors.T @ vectors)  # ascending
    basis = directions[:, values.argsort(descending=True)[:width]]  # (E, W)
    coordinates = vectors @ basis
    stem.token_embedding.weight.copy_(coordinates * (WORD_STD / coordinates.std()))
    head.projection.weight.copy_(basis)
    encoder.postprocessors["text"].log_scale.zero_()


class Bag(nn.Module):
    """The encoder's token embeddings, pooled with learned weights, through its head: a text without its order."""

    def __init__(self, encoder: ImageBindEncoder) -> None:
        super().__init__()
        self.words, self.head = encoder.stems["text"].token_embedding, encoder.heads["text"]
        self.heads = encoder.config.trunks[Modality.TEXT].heads
        self.keys = nn.Parameter(torch.zeros(self.heads, self.words.weight.shape[1]))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (M, T), zeros behind the end -> unit vectors (M, E)."""
        tokens = self.words(ids)
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        scores = (tokens @ self.keys.T).masked_fill(~is_text(ids)[..., None], -math.inf)  # (M, T, H)
        parts = tokens.unflatten(-1, (self.heads, -1))
        pooled = (scores.softmax(1)[..., None] * parts).sum(1).flatten(1)
        return F.normalize(self.head(pooled), dim=-1)


def fit_words(
    encoder: ImageBindEncoder, ids: Tensor, targets: Tensor, config: DistilConfig,
    report: Callable[[int, float], None] | None = None,
) -> None:
    """Fit token embeddings and head as a bag, then make the blocks compute that bag.

    `ids` (M, context), `targets` (M, E) of unit length; `report(step, loss)` is called at every step.
    """
    bag = Bag(encoder)
    optimiser = torch.optim.Adam(bag.parameters(), config.word_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _schedule(config.warm_up, config.word_steps))
    batches = draw(ids, config.word_batch, config.seed)
    for step in range(config.word_steps):
        chosen, short = next(batches)
        loss = 1 - (bag(short) * targets[chosen].float()).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if report:
            report(step, loss.item())
    _become_bag(encoder, bag)


@torch.no_grad()
def _become_bag(encoder: ImageBindEncoder, bag: Bag) -> None:
    """Let the first block pool as the bag does: every query is the same, so scores are the keys' alone."""
    attention = encoder.trunks["text"].blocks[0].attention
    width = bag.keys.shape[1]
    size = width // bag.heads
    query, key, value = attention.qkv.weight.view(3, width, width)
    query.zero_()
    attention.qkv.bias.zero_()
    for head in range(bag.heads):
        attention.qkv.bias[head * size] = math.sqrt(size)  # undoes the scale of the scores
        key[head * size] = bag.keys[head]
    value.copy_(torch.eye(width))
    attention.out.weight.copy_(torch.eye(width))
    # Positions and all that comes after add nothing at first; the end token, where the pool is read, next to nothing.
    encoder.stems["text"].position.zero_()
    for number, block in enumerate(encoder.trunks["text"].blocks):
        block.mlp.down.weight.zero_()
        if number:
            block.attention.out.weight.zero_()
    end = encoder.stems["text"].token_embedding.weight[-1]
    end *= 0.01 / end.std()


def distil(
    encoder: ImageBindEncoder, ids: Tensor, targets: Tensor, config: DistilConfig,
    report: Callable[[int, float], None] | None = None,
) -> None:
    """Train the whole text trunk towards `targets` (M, E) or (M, N, E), of unit length, with the cosine as loss.

    Texts are only as long as the longest of their batch, until in the last steps they are padded as they will be in
    use: class tokens behind the first see the padding and have to learn to leave it alone.
    """
    parts = [getattr(encoder, name)["text"] for name in ("stems", "trunks", "heads")]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimiser = torch.optim.AdamW(parameters, config.rate, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _schedule(config.warm_up, config.steps))
    batches = draw(ids, config.batch_size, config.seed + 1)
    full_from = config.steps - round(config.full_share * config.steps)
    targets = targets if targets.ndim == 3 else targets[:, None]
    for step in range(config.steps):
        chosen, short = next(batches)
        wanted = targets[chosen].float()
        # batches are large enough here for bfloat16 to pay where the processor multiplies it
        with torch.autocast("cpu", torch.bfloat16):
            features = encode_short(encoder, ids[chosen] if step >= full_from else short)
        loss = 1 - (features.float() * wanted).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if report:
            report(step, loss.item())


def encode_short(encoder: ImageBindEncoder, ids: Tensor) -> Tensor:
    """Unit features (M, N, E) of ids (M, T), T up to the context.

    Feature 0 is that of the padded text, since a causal trunk does not see what follows; the others differ a little.
    """
    stem, trunk, head = (getattr(encoder, name)["text"] for name in ("stems", "trunks", "heads"))
    tensors = {**dict(stem.named_parameters()), "position": stem.position[:, : ids.shape[1]]}
    output = functional_call(_short_stem(encoder.config.trunks[Modality.TEXT], ids.shape[1]), tensors, (ids,))
    return F.normalize(head(trunk.select(trunk(output.tokens, output.mask), output.read_at)), dim=-1)


@lru_cache(maxsize=256)
def _short_stem(config: TrunkConfig, length: int) -> TextStem:
    with torch.device("meta"):
        return TextStem(replace(config, stem=TextStemConfig(config.stem.vocab_size, length)))


def is_text(ids: Tensor) -> Tensor:
    """True (M, T) up to the end token, which is the largest id and the first of its kind."""
    return torch.arange(ids.shape[1]) <= ids.argmax(-1, keepdim=True)


def draw(ids: Tensor, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: which texts (B,), and their ids (B, T) with T the longest of them; every epoch once each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = ids.argmax(-1) + 1
    while True:
        order = torch.randperm(len(ids), generator=generator)
        for many in order.split(batch_size * SORTED_BATCHES):
            batches = many[lengths[many].argsort()].split(batch_size)
            for number in torch.randperm(len(batches), generator=generator).tolist():
                chosen = batches[number]
                yield chosen, ids[chosen, : int(lengths[chosen].max())].long()


def _schedule(warm_up: int, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate: up in a line, down along a cosine."""

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))

    return factor
