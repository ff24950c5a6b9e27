"""Text and media in, tensors out: the only place where the tokenizer and the loaders meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imagebind_encoder.config import AudioConfig, EncoderConfig, Modality
from imagebind_encoder.media.image import load_image
from imagebind_encoder.media.source import describe
from imagebind_encoder.media.windows import Windows

from .config import KEYWORDS, AdapterLLMConfig, ClipConfig
from .prompts import render
from .words import listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Question = str | Sequence[dict]  # a question, or a conversation that ends in one

MIXES = ("average", "concat")
LEAST, MOST = 1e-3, 1e6  # of a weight that is not 0: beyond them rounding, not the caller, decides


@dataclass(frozen=True)
class InputOptions:
    """How media are read and brought together. Windows are of recordings: video, audio, imu."""

    window: float | None = None  # seconds; None: a recording is looked at as a whole, or, with hop or pool, in clips
    hop: float | None = None  # seconds from one window to the next; None: as long as a window
    pool: str | None = None  # of the windows' features: "mean" (also None), "max", or "none", which keeps them all
    mix: str = "average"  # of several inputs: one mean feature, or "concat": the connector reads all of them

    def __post_init__(self) -> None:
        self.windows(1.0)
        if self.mix not in MIXES:
            raise ValueError(f"mix must be one of {', '.join(MIXES)}, not {self.mix!r}")

    def windows(self, clip: float) -> Windows | None:
        """How to cut a recording of a modality whose clips last `clip` seconds; None: not at all."""
        if self.window is None and self.hop is None and self.pool is None:
            return None
        return Windows(clip if self.window is None else self.window, self.hop, self.pool or "mean")

    @property
    def keeps_windows(self) -> bool:
        return self.pool == "none"


@dataclass(frozen=True)
class MediaItem:
    """One picture, sound, ... of a question, and its weight among the others."""

    keyword: str
    source: Any  # whatever the keyword's loader takes
    weight: float = 1.0

    @property
    def modality(self) -> Modality:
        return KEYWORDS[self.keyword]


def media_items(
    weights: Mapping[str, float] | None = None, *, signed: bool = False, **media: Any
) -> list[MediaItem]:
    """Keyword media (`image=...`) as items.

    Raises ValueError for an unknown keyword, a weight that is no number from LEAST to MOST or 0 (or, `signed`, the
    negative of one), and for a tuple that is not (source, weight).
    """
    factors = weights or {}
    unknown = [name for name in [*media, *factors] if name not in KEYWORDS]
    if unknown:
        raise ValueError(f"unknown media {', '.join(unknown)}; there are {', '.join(KEYWORDS)}")
    items = []
    for name, given in media.items():
        entries = [] if given is None else given if isinstance(given, list) else [given]
        for entry in entries:
            source, weight = _weighted(name, entry)
            weight *= factors.get(name, 1.0)
            if not (weight == 0 or LEAST <= (abs(weight) if signed else weight) <= MOST):
                raise ValueError(
                    f"the weight of {describe(source)} is {weight:g}; "
                    f"it must be 0, or a number from {LEAST:g} to {MOST:g}"
                )
            items.append(MediaItem(name, source, weight))
    return items


def _weighted(keyword: str, entry: Any) -> tuple[Any, float]:
    """A source and its weight, of either alone or both in a tuple."""
    if not isinstance(entry, tuple):
        return entry, 1.0
    if len(entry) != 2 or isinstance(entry[1], bool) or not isinstance(entry[1], (int, float)):
        raise ValueError(
            f"{keyword} was given a tuple that is not (source, weight); several sources go in a list, not in a tuple"
        )
    return entry[0], float(entry[1])


def given_kinds(inputs: Mapping[str, Any]) -> list[str]:
    """The media keywords that hold something."""
    given = {name: inputs[name] for name in KEYWORDS if inputs.get(name) is not None}
    return [name for name, value in given.items() if not isinstance(value, list) or value]


@dataclass(frozen=True)
class LoadedItem:
    """What a file became: a tensor, or the windows of a recording, read while they are encoded, or their features."""

    modality: Modality
    weight: float
    tensor: Tensor | None = None
    windows: Iterator[Tensor] | None = None
    pool: str = "mean"  # of the windows' features
    features: Tensor | None = None  # (N, E)


def load_media(
    item: MediaItem, config: EncoderConfig | ClipConfig, options: InputOptions = InputOptions()
) -> LoadedItem:
    """One item, read. Raises MediaError for what cannot be read, ValueError for what these weights lack."""
    loaded = load_source(item.keyword, item.source, config, options)
    if isinstance(loaded, Tensor):
        return LoadedItem(item.modality, item.weight, loaded)
    first = next(loaded)  # whatever is wrong with the file's beginning is known at once
    return LoadedItem(item.modality, item.weight, windows=chain([first], loaded), pool=options.pool or "mean")


def keywords_of(config: EncoderConfig | ClipConfig, modalities: Iterable[Modality] | None = None) -> list[str]:
    """Keywords of the media that weights of this config take; `modalities` limits them to some trunks."""
    known = set(config.modalities if modalities is None else modalities)
    films = isinstance(config, EncoderConfig)  # CLIP's connector was made for the tokens of one picture
    return [name for name, modality in KEYWORDS.items() if modality in known and (films or name != "video")]


def check_modality(keyword: str, config: EncoderConfig | ClipConfig) -> None:
    """Raise ValueError if weights of this config cannot see what the keyword names."""
    if keyword not in KEYWORDS:
        raise ValueError(f"unknown media {keyword}; there are {', '.join(KEYWORDS)}")
    if keyword not in keywords_of(config):
        raise ValueError(
            f"these weights take {listed(keywords_of(config))}, not {keyword}; ImageBind's published weights take "
            "every kind but point, and its point-cloud variant that, too: weights/README.md says how to get them"
        )


def modalities_of(keywords: Iterable[str], config: EncoderConfig | ClipConfig) -> list[Modality]:
    """The trunks that these keywords need. Raises ValueError for a keyword that weights of this config cannot see."""
    keywords = list(keywords)
    for keyword in keywords:
        check_modality(keyword, config)
    return [KEYWORDS[keyword] for keyword in keywords]


def load_source(
    keyword: str, source: Any, config: EncoderConfig | ClipConfig, options: InputOptions = InputOptions()
) -> Tensor | Iterator[Tensor]:
    """A file's tensor, or the tensors of its windows. A loader is imported when the first file needs it."""
    check_modality(keyword, config)
    if keyword == "image":
        return load_image(source, config.image)
    stem = config.trunks[KEYWORDS[keyword]].stem
    if keyword == "video":
        from imagebind_encoder.media.video import load_video, video_windows

        settings = (config.image, config.video, stem.size[0])
        windows = options.windows(config.video.seconds)
        return load_video(source, *settings) if windows is None else video_windows(source, windows, *settings)
    if keyword == "audio":
        from imagebind_encoder.media.audio import audio_windows, load_audio

        settings, windows = (config.audio, stem.size), options.windows(config.audio.seconds)
        if windows is not None:
            return audio_windows(source, windows, *settings)
        loaded = load_audio(source, *settings)
        if is_silent(loaded, config.audio):
            raise ValueError(f"{describe(source)} is silent, so there is nothing to hear; give one with a sound")
        return loaded
    if keyword == "imu":
        from imagebind_encoder.media.imu import imu_windows

        return imu_windows(source, options.windows(config.imu.seconds), config.imu, stem.size[0])
    if keyword == "text":
        from imagebind_encoder.media.text import load_text

        return load_text(source, config.text, stem)
    if keyword == "depth":
        from imagebind_encoder.media.depth import load_depth

        return load_depth(source, config.depth, stem.size)
    if keyword == "thermal":
        from imagebind_encoder.media.thermal import load_thermal

        return load_thermal(source, config.thermal, stem.size)
    from imagebind_encoder.media.point import load_point_cloud

    return load_point_cloud(source, stem)


def is_silent(loaded: Tensor, config: AudioConfig) -> bool:
    """Whether a recording's spectrogram is that of nothing: no power in any bin, and filling behind a short one."""
    from imagebind_encoder.media.mel import EPSILON

    nothing, filling = ((value - config.mean) / config.std for value in (math.log(EPSILON), 0.0))
    return bool((((loaded - nothing).abs() < 1e-2) | ((loaded - filling).abs() < 1e-6)).all())


Load = Callable[[MediaItem, EncoderConfig | ClipConfig, InputOptions], LoadedItem]


@dataclass(frozen=True)
class Processor:
    """What a checkpoint needs to know to turn questions into tensors."""

    tokenizer: PreTrainedTokenizerBase
    config: AdapterLLMConfig

    def load(
        self, items: Sequence[MediaItem], options: InputOptions = InputOptions(), load: Load = load_media
    ) -> list[LoadedItem]:
        """The media of one question; what weighs nothing is not read. Raises ValueError if nothing weighs anything."""
        if items and not sum(item.weight for item in items) > 0:
            raise ValueError("all weights are 0; give at least one input a weight above 0")
        return [load(item, self.config.encoder, options) for item in items if item.weight > 0]

    def prompt_ids(self, question: Question, has_media: bool) -> list[int]:
        """Token ids of a prompt, up to where the answer begins."""
        return list(render(self.tokenizer, self.config.prompt, question, has_media))

    def tokenize(
        self, questions: Sequence[Question], has_media: Sequence[bool], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Prompts as input_ids and attention_mask (B, T), padded on the left."""
        ids = [self.prompt_ids(question, media) for question, media in zip(questions, has_media, strict=True)]
        return padded(ids, self.pad_token_id, device)

    @property
    def pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids of any lengths as input_ids and attention_mask (B, T), padded on the left."""
    length = max(map(len, rows))
    input_ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return input_ids, mask
