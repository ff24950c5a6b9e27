"""An IMU trunk for the default embedding space: each class token learns the sentence of what the wearer does.

Recordings are few, so they are varied: worn askew or on the other arm, a bit faster or slower, with gravity or
without, cut anywhere. What comes out is compared with the sentences of all activities at once.
Shapes: T samples of a recording, M windows, N class tokens, A activities, E embedding size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from imagebind_encoder.config import EncoderConfig, ImuConfig, Modality, PatchStemConfig, TrunkConfig
from imagebind_encoder.media.imu import Motion, imu_windows, load_imu
from imagebind_encoder.media.imu_columns import STANDARD_GRAVITY
from imagebind_encoder.media.windows import Windows
from imagebind_encoder.modeling import ImageBindEncoder

EMBEDDING_DIM = 384  # of the sentence encoder whose space this is
SHARPNESS = 20.0  # times the cosine, before activities are compared
SUFFIXES = (".csv", ".txt", ".tsv", ".npy")


@dataclass(frozen=True)
class Variation:
    """How much a recording is changed before it is learned from."""

    tilt: float = 0.35  # radians, standard deviation
    anyhow: float = 0.15  # share that is turned into any direction
    mirror: float = 0.3  # share that is worn on the other arm
    speed: float = 0.15  # natural log, at most
    scale: float = 0.15  # natural log, standard deviation, each sensor its own
    gravity: float = 0.5  # share to which gravity is added; the window's mean takes away what stands still of it
    noise: float = 0.05  # of each sensor's standard deviation
    shortest: float = 0.7  # of a window; the rest of a cut that is shorter is zeros


@dataclass(frozen=True)
class Recording:
    """One recording of one activity, in m/s^2 and rad/s."""

    motion: Motion
    label: str
    name: str = ""
    how: Variation = Variation()  # it may be varied


def imu_config(width: int = 96, depth: int = 2, heads: int = 4, samples: int = 100) -> EncoderConfig:
    """A small trunk with two class tokens that reads 5 s as `samples`, half a second a patch.

    Its stem has no norm: that would take away how strong a motion is.
    """
    kernel = max(1, samples // 10)
    stem = PatchStemConfig(
        channels=6, size=(samples,), kernel=(kernel,), stride=(max(1, kernel // 2),), norm=False
    )  # fmt: skip
    trunk = TrunkConfig(width, depth, heads, num_cls_tokens=2, mlp_ratio=2.0, stem=stem)
    return EncoderConfig(EMBEDDING_DIM, {Modality.IMU: trunk}, imu=ImuConfig(centre=True))


def read_folder(folder: Path, config: ImuConfig, rate: int = 50) -> list[Recording]:
    """The recordings of a folder: a subfolder a label, a file a recording, brought to `rate` samples a second.

    Whole seconds only. Raises MediaError naming the first file that cannot be read, ValueError if there are none.
    """
    files = [path for path in sorted(Path(folder).glob("*/*")) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"{folder} has no recordings; give a folder LABEL/RECORDING.csv")
    return [Recording(read_motion(path, config, rate), path.parent.name, path.stem) for path in files]


def read_motion(path: Path, config: ImuConfig, rate: int = 50) -> Motion:
    """The whole seconds of a recording, brought to `rate` samples a second. Raises MediaError."""
    *whole, last = imu_windows(path, Windows(1.0), replace(config, centre=False), rate)
    return Motion(torch.cat(whole or [last], dim=1), rate)  # the last overlaps with the one before


def rotation(turn: Tensor) -> Tensor:
    """Matrices (..., 3, 3) that turn by vectors (..., 3), as far as they are long, in radians; Rodrigues' formula."""
    angle = turn.norm(dim=-1)[..., None, None]
    x, y, z = F.normalize(turn, dim=-1).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.eye(3, dtype=turn.dtype) + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)


def gravity(turning: Tensor, rate: float, start: Tensor) -> Tensor:
    """What an accelerometer that turns as its gyroscope says (3, T) feels of gravity (3, T), `start` (3,) at first."""
    felt = [start]
    for step in rotation(-turning.T[:-1] / rate):  # the world turns the other way around the sensor
        felt.append(step @ felt[-1])
    return torch.stack(felt, dim=1) * STANDARD_GRAVITY


def varied(motion: Motion, seconds: float, rng: random.Random, how: Variation = Variation()) -> Motion:
    """A random cut of about `seconds` out of a recording, changed as another wearer or sensor might."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rate = motion.rate * math.exp(rng.uniform(-how.speed, how.speed))
    length = min(motion.samples.shape[1], round(seconds * rate * rng.uniform(how.shortest, 1.3)))
    first = rng.randint(0, motion.samples.shape[1] - length)
    parts = motion.samples[:, first : first + length].double().view(2, 3, -1)
    parts = parts * (normal(2, 1, 1) * how.scale).exp()
    parts = parts + normal(*parts.shape) * parts.std(dim=(1, 2), keepdim=True) * how.noise
    if rng.random() < how.gravity:
        felt = gravity(parts[1], rate, F.normalize(normal(3), dim=0))
        parts = torch.stack([parts[0] + felt, parts[1]])
    if rng.random() < how.mirror:  # a reflection turns the sense of rotation around, too
        parts = parts * torch.tensor([[-1.0, 1, 1], [1, -1, -1]], dtype=torch.float64)[..., None]
    angle = rng.uniform(0, math.pi) if rng.random() < how.anyhow else rng.gauss(0, how.tilt)
    turned = rotation(F.normalize(normal(3), dim=0) * angle) @ parts
    return Motion(turned.reshape(6, -1), rate)


def train_imu(
    encoder: ImageBindEncoder,
    recordings: Sequence[Recording],
    sentences: Mapping[str, Tensor],
    steps: int = 1500,
    batch_size: int = 48,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train the IMU trunk to give each label's sentence embedding (E,), at every class token; the loss of each step.

    All labels are seen equally often. Raises ValueError for a label that has no sentence.
    """
    labels = sorted({recording.label for recording in recordings})
    if absent := [label for label in labels if label not in sentences]:
        raise ValueError(f"there is no sentence for {', '.join(absent)}; give one for each label")
    by_label = [[recording for recording in recordings if recording.label == label] for label in labels]
    targets = F.normalize(torch.stack([sentences[label] for label in labels]), dim=-1)
    config, samples = encoder.config.imu, encoder.config.trunks[Modality.IMU].stem.size[0]
    rng, losses = random.Random(seed), []
    optimizer = torch.optim.AdamW(encoder.parameters(), learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(2, steps + 1))
    encoder.train()
    for _ in tqdm(range(steps), desc="imu", leave=False):
        wanted = [rng.randrange(len(labels)) for _ in range(batch_size)]
        chosen = [rng.choice(by_label[label]) for label in wanted]
        motions = (varied(one.motion, config.seconds, rng, one.how) for one in chosen)
        motion = torch.stack([load_imu(one, config, samples) for one in motions])
        cosine = F.normalize(encoder({Modality.IMU: motion})[Modality.IMU], dim=-1) @ targets.T  # (M, N, A)
        tokens = cosine.shape[1]
        expected = torch.tensor(wanted).repeat_interleave(tokens)
        loss = F.cross_entropy(cosine.flatten(0, 1) * SHARPNESS, expected, label_smoothing=0.05)
        loss = loss + 1 - cosine.flatten(0, 1).gather(1, expected[:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    encoder.eval()
    return losses


@torch.inference_mode()
def imu_features(encoder: ImageBindEncoder, motion: Motion | Path, windows: Windows | None = None) -> Tensor:
    """Features (M, N, E) of the windows of a recording; None: windows of the config's length."""
    samples = encoder.config.trunks[Modality.IMU].stem.size[0]
    found = imu_windows(motion, windows, encoder.config.imu, samples)
    return encoder({Modality.IMU: torch.stack(list(found))})[Modality.IMU]


def nearest_label(features: Tensor, sentences: Mapping[str, Tensor]) -> list[str]:
    """The label whose sentence is nearest to each of (M, N, E) features, the class tokens' mean."""
    names = list(sentences)
    targets = F.normalize(torch.stack([sentences[name] for name in names]), dim=-1)
    return [names[index] for index in (F.normalize(features, dim=-1).mean(1) @ targets.T).argmax(-1)]
