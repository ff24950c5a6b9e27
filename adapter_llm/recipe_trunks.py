"""The trunks of `weights/default` beside that for photos: each learns to say in the photos' space what it senses.

They need nothing of each other and nothing of the language model. Each is left in a folder, as NAME.json (an
encoder's config) and NAME.safetensors, and taken from there the next time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from errno import ENOENT
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from imagebind_encoder.config import EncoderConfig
from imagebind_encoder.modeling import ImageBindEncoder

from .checkpoint import read_tensors
from .corpus import RECOMBINED, sentence_corpus
from .fetch import backbone_file
from .fetch.files import partial_name
from .parts import EFFICIENTNET_LITE0
from .sounds import Clip, Sound, load_samples, read_sounds
from .train_audio import AudioTraining, Batches, audio_config, fit_classifier, solve_audio, start_from_pictures
from .train_imu import Recording, imu_config, imu_features, read_motion, train_imu
from .train_text import DistilConfig, distil_text
from .vocabulary import Concept

Sentences = Callable[[Sequence[str]], Tensor]  # texts to unit vectors (M, E), as SentenceEncoder
EAR = "efficientnet_lite0"  # what timm calls the network that EFFICIENTNET_LITE0 holds


@dataclass(frozen=True)
class TrunksConfig:
    """How long each trunk is trained."""

    text: DistilConfig = field(default_factory=DistilConfig)
    recombined: int = RECOMBINED
    audio: AudioTraining = field(default_factory=AudioTraining)
    imu_steps: int = 1500
    imu_depth: int = 3


def save_trunk(path: Path, encoder: ImageBindEncoder) -> None:
    """Write an encoder as NAME.json beside NAME.safetensors; `path` is their name without the ending.

    The tensors come last, under a name of their own until they are whole: where they are, all is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(encoder.config.to_dict(), indent=1)
    _with_ending(path, ".json").write_text(text, encoding="utf-8")
    with partial_name(_with_ending(path, ".safetensors")) as partial:
        save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, partial)


def read_trunk(path: Path) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """What `save_trunk` wrote: a config, and the tensors of the encoder that it describes."""
    config = EncoderConfig.from_dict(json.loads(_with_ending(path, ".json").read_text(encoding="utf-8")))
    return config, load_file(_with_ending(path, ".safetensors"))


def _with_ending(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def has_trunk(path: Path) -> bool:
    return _with_ending(path, ".safetensors").exists()


def make_trunks(
    wordnet: Path,
    concepts: Sequence[Concept],
    captions: Sequence[str],
    sounds: Path,
    motion: Path,
    sentences: Sentences,
    work: Path,
    config: TrunksConfig = TrunksConfig(),
) -> list[Path]:
    """Train the trunks that `work` lacks; the paths of all, for `read_trunk`.

    `captions` are those that training may see; `sounds` and `motion` folders as `read_sounds` reads them. Wrong
    tables raise ValueError, and recordings that are not there FileNotFoundError, before any training.
    """
    heard, moved = read_sounds(sounds), read_sounds(motion)
    for _, clips in (heard, moved):
        for clip in clips:
            if not clip.path.is_file():
                raise FileNotFoundError(ENOENT, "there is no such recording", str(clip.path))

    def text_trunk() -> ImageBindEncoder:
        texts = sentence_corpus(wordnet, concepts, captions, recombined=config.recombined)
        return distil_text(texts, sentences, config=config.text)

    makers = {  # the text trunk first: WordNet's files are read only there
        "text": text_trunk,
        "audio": lambda: audio_trunk(*heard, sentences, config),
        "imu": lambda: imu_trunk(*moved, sentences, config),
    }
    for name, make in makers.items():
        if not has_trunk(work / name):
            torch.manual_seed(0)  # the same trunk, whichever were there already
            save_trunk(work / name, make())
    return [work / name for name in makers]


def audio_trunk(
    sounds: Sequence[Sound], clips: Sequence[Clip], sentences: Sentences, config: TrunksConfig
) -> ImageBindEncoder:
    """An encoder of sounds alone, from those clips that are not held out."""
    heard = [(load_samples(clip.path), clip.label, clip.group) for clip in clips if not clip.held_out]
    encoder = ImageBindEncoder(audio_config(len(sounds), EAR)).eval()
    start_from_pictures(encoder, read_tensors(backbone_file(EFFICIENTNET_LITE0, EAR)))
    for _ in fit_classifier(encoder, Batches(heard, len(sounds), encoder.config.audio), config.audio):
        pass
    solve_audio(encoder, *class_embeddings(sounds, sentences))
    return encoder


def class_embeddings(sounds: Sequence[Sound], sentences: Sentences) -> tuple[Tensor, Tensor]:
    """Of what makes each sound and of what happens, both (classes, E) and of unit length."""
    names = torch.stack([F.normalize(sentences(sound.sentences()).mean(0), dim=-1) for sound in sounds])
    return names, F.normalize(sentences([sound.caption for sound in sounds]), dim=-1)


def imu_trunk(
    classes: Sequence[Sound], clips: Sequence[Clip], sentences: Sentences, config: TrunksConfig
) -> ImageBindEncoder:
    """An encoder of motion alone, from those recordings that are not held out."""
    encoder = ImageBindEncoder(imu_config(depth=config.imu_depth))
    recordings = [
        Recording(read_motion(clip.path, encoder.config.imu), classes[clip.label].name, clip.path.stem)
        for clip in clips if not clip.held_out
    ]  # fmt: skip
    captions = sentences([each.caption for each in classes])
    targets = {each.name: caption.clone() for each, caption in zip(classes, captions, strict=True)}
    train_imu(encoder, recordings, targets, config.imu_steps)
    return encoder


def motion_features(folder: Path, trunk: Path) -> tuple[Tensor, list[str]]:
    """Features (M, N, E) of the recordings of a folder that are not held out, and the caption of each.

    A recording's are the mean over its windows.
    """
    config, tensors = read_trunk(trunk)
    encoder = ImageBindEncoder(config).eval()
    encoder.load_state_dict(tensors)
    classes, clips = read_sounds(folder)
    clips = [clip for clip in clips if not clip.held_out]
    found = [F.normalize(imu_features(encoder, clip.path), dim=-1).mean(0) for clip in clips]
    return F.normalize(torch.stack(found), dim=-1), [classes[clip.label].caption for clip in clips]
