"""The default audio trunk: a classifier of sounds whose class tokens speak the embedding space of the other trunks.

A classifier of pictures learns to read spectrograms: one that has seen photographs needs far fewer recordings than
one that starts from nothing. Token 0 is what makes the sound: class embeddings weighted by probability (ConSE,
arXiv:1312.5650). Token 1 is what happens: the same with the embeddings of the classes' captions.
Shapes: M recordings, S clips of one, B clips of a batch, L samples of a clip, N class tokens, E embedding size.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from imagebind_encoder.config import AudioConfig, EncoderConfig, Modality, TrunkConfig
from imagebind_encoder.media.audio import SIZE
from imagebind_encoder.media.mel import EPSILON, frame_length, mel_spectrogram
from imagebind_encoder.modeling import ImageBindEncoder

from .sounds import RATE, loudness, varied
from .train_encoder import EMBEDDING_DIM

BINS, FRAMES = SIZE
SILENCE = float(np.log(EPSILON))  # the least a bin can hold


@dataclass(frozen=True)
class AudioTraining:
    """Settings of `fit_classifier`."""

    steps: int = 1100
    batch_size: int = 32
    rate: float = 1.2e-3  # of the backbone, at its highest; the classifier's is three times as high
    weight_decay: float = 0.03
    mixed: float = 0.3  # share of the clips that another one is heard behind
    smoothing: float = 0.07  # of the labels
    dropout: float = 0.2  # of the pooled features


def audio_config(classes: int, backbone: str = "efficientnet_lite0") -> EncoderConfig:
    """The default audio encoder's sizes. Clips are cut out separately, so that none depends on its neighbours."""
    trunk = TrunkConfig(
        width=EMBEDDING_DIM, depth=0, heads=1, num_cls_tokens=2, backbone=backbone, backbone_classes=classes
    )
    return EncoderConfig(EMBEDDING_DIM, {Modality.AUDIO: trunk}, audio=AudioConfig(overlap="separate"))


def start_from_pictures(encoder: ImageBindEncoder, published: Mapping[str, Tensor]) -> None:
    """Give the audio backbone the weights of a picture classifier, all but its last layer.

    Colours are summed: a grey picture looks the same to it. Raises RuntimeError for weights of another network.
    """
    backbone = encoder.stems["audio"].backbone
    kept = {name: tensor for name, tensor in published.items() if not name.startswith("classifier.")}
    kept["conv_stem.weight"] = kept["conv_stem.weight"].sum(1, keepdim=True)
    own = {name: tensor for name, tensor in backbone.state_dict().items() if name.startswith("classifier.")}
    backbone.load_state_dict(kept | own)


def spectrograms(sounds: Sequence[np.ndarray], config: AudioConfig, rng: random.Random | None = None) -> Tensor:
    """Clips of floats, no longer than `config.seconds`, as the encoder gets them: (B, 1, 128, 204).

    With `rng` each is changed at random: filtered, and with stretches of time and frequency blanked out.
    """
    waveforms = torch.zeros(len(sounds), int(config.seconds * config.rate))
    for row, sound in zip(waveforms, sounds, strict=True):
        row[: len(sound)] = torch.from_numpy(sound - sound.mean())
    mel = F.pad(mel_spectrogram(waveforms, BINS, config.rate), (0, FRAMES))[..., :FRAMES]
    if rng is not None:
        for plane in mel:
            _filter(plane, rng)
            _blank(plane, rng)
    shift = config.rate // 100
    whole = torch.tensor([1 + (len(sound) - frame_length(config.rate)) // shift for sound in sounds])
    mel[(torch.arange(FRAMES) >= whole[:, None])[:, None].expand_as(mel)] = 0  # where a short clip has no frames
    return ((mel - config.mean) / config.std)[:, None]


def _filter(plane: Tensor, rng: random.Random) -> None:
    """A smooth random curve over the bins, as of another microphone; sometimes nothing is left of the highest."""
    knots = torch.tensor([[[rng.gauss(0, 1) for _ in range(6)]]])
    curve = F.interpolate(knots, size=len(plane), mode="linear", align_corners=True)[0, 0]
    if rng.random() < 0.15:
        high = len(plane) - rng.randint(75, 120) * len(plane) // 128
        curve[-high:] -= torch.linspace(0, 0.5, high) * high * rng.uniform(0.3, 1)
    plane.add_(curve[:, None]).clamp_(min=SILENCE)


def _blank(plane: Tensor, rng: random.Random) -> None:
    """Blanks out a band and a stretch of time, sometimes (SpecAugment, arXiv:1904.08779)."""
    if rng.random() < 0.4:
        width = rng.randint(4, 20)
        start = rng.randrange(plane.shape[0] - width)
        plane[start : start + width] = plane.mean()
    if rng.random() < 0.4:
        width = rng.randint(5, 40)
        start = rng.randrange(plane.shape[1] - width)
        plane[:, start : start + width] = SILENCE if rng.random() < 0.5 else plane.mean()


class Batches:
    """Random clips of recordings (int16 samples, label, group): every class gets its turn, and in it every group.

    Rare classes come more often than their recordings are many, and so do recordings of small groups.
    """

    def __init__(self, recordings: Sequence[tuple[np.ndarray, int, str]], classes: int, config: AudioConfig) -> None:
        self.groups: dict[int, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
        for samples, label, group in recordings:
            self.groups[label][group].append(samples)
        self.weights = {label: sum(map(len, groups.values())) ** 0.3 for label, groups in self.groups.items()}
        self.classes, self.config, self.rng = classes, config, random.Random(0)

    def draw(self) -> tuple[np.ndarray, int]:
        label = self.rng.choices(list(self.weights), list(self.weights.values()))[0]
        groups = list(self.groups[label].values())
        group = self.rng.choices(groups, [len(members) ** 0.4 for members in groups])[0]
        return varied(self.rng.choice(group), self.rng, int(self.config.seconds * RATE)), label

    def sample(self, count: int, mixed: float) -> tuple[Tensor, Tensor]:
        """Spectrograms (count, 1, 128, 204) and probabilities (count, classes) of what is to be heard."""
        sounds, targets = [], torch.zeros(count, self.classes)
        for row in targets:
            sound, label = self.draw()
            row[label] = 1
            if self.rng.random() < mixed:
                other, second = self.draw()
                share = self.rng.uniform(0.5, 1)
                sound = _behind(sound, other, share)
                row *= share
                row[second] += 1 - share
            sounds.append(sound)
        return spectrograms(sounds, self.config, self.rng), targets


def _behind(sound: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """The first sound, with the other one behind it; `share` of the loudness is the first one's."""
    mixture = sound.copy()
    length = min(len(sound), len(other))
    mixture[:length] += other[:length] * (loudness(sound) / loudness(other) * (1 - share) / share)
    return np.clip(mixture, -1, 1)


def fit_classifier(encoder: ImageBindEncoder, batches: Batches, config: AudioTraining) -> Iterator[float]:
    """Train the whole audio backbone, one step an iteration; yields the losses. It is frozen again in the end."""
    backbone: nn.Module = encoder.stems["audio"].backbone.requires_grad_(True)
    last = list(backbone.classifier.parameters())
    body = [parameter for name, parameter in backbone.named_parameters() if not name.startswith("classifier.")]
    rates = [config.rate, 3 * config.rate]
    optimizer = torch.optim.AdamW(
        [{"params": body, "lr": rates[0]}, {"params": last, "lr": rates[1]}], weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=config.steps, pct_start=0.15)
    try:
        for _ in tqdm(range(config.steps), desc="sounds"):
            planes, targets = batches.sample(config.batch_size, config.mixed)
            backbone.train()  # whoever looks at the encoder between steps may have put it to rest
            pooled = F.dropout(encoder.stems["audio"].pool(planes), config.dropout)
            wanted = targets * (1 - config.smoothing) + config.smoothing / targets.shape[1]
            loss = F.cross_entropy(backbone.classifier(pooled), wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(backbone.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            yield loss.item()
    finally:
        backbone.eval().requires_grad_(False)


@torch.no_grad()
def solve_audio(encoder: ImageBindEncoder, class_embeddings: Tensor, caption_embeddings: Tensor) -> None:
    """Set the class tokens and the head: token 0 are classes, token 1 captions, weighted by probability.

    Both embeddings (classes, E), of unit length.
    """
    stem, head = encoder.stems["audio"], encoder.heads["audio"]
    channels, width = stem.backbone.num_features, class_embeddings.shape[1]
    head.projection.weight.copy_(torch.eye(width))
    stem.summary.weight.zero_()
    stem.summary.bias.zero_()
    stem.summary.weight[:width, channels:] = class_embeddings.T
    stem.summary.weight[width:, channels:] = caption_embeddings.T


@torch.inference_mode()
def hear(encoder: ImageBindEncoder, recordings: Sequence[Tensor], batch_size: int = 16) -> tuple[Tensor, Tensor]:
    """Of recordings (S, 1, 128, 204), as `load_audio` gives them: features (M, N, E) of unit length, probabilities.

    Probabilities (M, classes) are means over the clips. All recordings have equally many clips.
    """
    stem, trunk, head = (parts["audio"] for parts in (encoder.stems, encoder.trunks, encoder.heads))
    features, probabilities = [], []
    for start in tqdm(range(0, len(recordings), batch_size), desc="features", leave=False):
        clips = torch.stack(list(recordings[start : start + batch_size]))
        pooled = stem.pool(clips.flatten(0, 1))
        each = F.normalize(head(trunk(stem.summarise(pooled))), dim=-1)
        features.append(F.normalize(each.unflatten(0, clips.shape[:2]).mean(1), dim=-1))
        believed = stem.evidence(pooled)[:, stem.backbone.num_features :]
        probabilities.append(believed.unflatten(0, clips.shape[:2]).mean(1))
    return torch.cat(features), torch.cat(probabilities)
