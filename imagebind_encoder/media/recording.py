"""Sound files and samples in memory: blocks of floats, as often as they are asked for, however long the file.

Samples of whole numbers become floats by division by the largest magnitude of their type (32768 for 16 bits);
floats stay as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from numbers import Integral

import numpy
import torch

from .source import Fetch, MediaError, Source, describe, fetch_url
from .track import open_track

BLOCK = 2**16  # samples of a channel that are handed on together, about
MAX_RATE = 384_000
MAX_CHANNELS = 64
MAX_HOURS = 12

_SCALES = {"u8": 2**7, "s16": 2**15, "s32": 2**31, "s64": 2**63, "flt": 1, "dbl": 1}


@dataclass(frozen=True, eq=False)
class Waveform:
    """Samples that are in memory already: floats in [-1, 1], (samples,) or (channels, samples), and their rate."""

    samples: numpy.ndarray | torch.Tensor
    rate: int


class Recording:
    """The samples of one source.

    `name` says what it is. `rate`, `channels` and `expected`, the number of samples that the file claims or None,
    are known once `blocks` was called; `samples`, the true number, once its blocks have been read to the end.
    """

    def __init__(self, source: Source | Waveform, fetch: Fetch | None = None) -> None:
        """Raises MediaError for a waveform that is none; files are not looked at yet."""
        self.rate = self.channels = 0
        self.expected: int | None = None
        self.samples: int | None = None
        self._given: tuple[torch.Tensor, int] | None = None
        if isinstance(source, Waveform):
            self.name, self._given = "the waveform", (_as_tensor(source.samples), source.rate)
            return
        self.name = describe(source)
        # A download is kept: a file whose length is not known is read twice.
        self._source, self._fetch = source, lru_cache(maxsize=1)(fetch or fetch_url)

    def blocks(self) -> Iterator[torch.Tensor]:
        """float32 (channels, n) one after the other, from the start; none of them may be written to.

        Raises MediaError, see `load_audio`: for a source that cannot be opened at once, for damage where it is.
        """
        blocks = self._checked(self._joined() if self._given is None else self._split(*self._given))
        first = next(blocks, None)
        if first is None:
            raise MediaError(f"{self.name} holds no samples; check that it was recorded or copied completely")
        return chain((first,), blocks)

    def _checked(self, blocks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        position = 0
        for block in blocks:
            # The sum of what is finite may overflow, too; looking at every sample is slow.
            if not bool(block.sum().isfinite()) and len(wrong := (~block.isfinite()).any(dim=0).nonzero()):
                raise MediaError(
                    f"{self.name} has samples that are NaN or infinite, the first at second "
                    f"{(position + int(wrong[0])) / self.rate:.3f}; record or convert it again"
                )
            position += block.shape[1]
            self._require_short(position / self.rate)
            yield block
        self.samples = position

    def _split(self, samples: torch.Tensor, rate: int) -> Iterator[torch.Tensor]:
        self._begin(rate, samples.shape[0])
        self.expected = samples.shape[1]
        yield from samples.split(BLOCK, dim=1) if self.expected else ()

    def _joined(self) -> Iterator[torch.Tensor]:
        with open_track(self._source, self.name, self._fetch) as track:
            arrays: list[numpy.ndarray] = []
            form, count, position = "", 0, 0
            for frame in track.frames():
                if arrays and (frame.format.name != form or count >= BLOCK):
                    yield _as_floats(arrays, form, self.channels)
                    arrays, count = [], 0
                rate, channels = frame.sample_rate, frame.layout.nb_channels
                if not position:
                    self._begin(rate, channels)
                    self.expected = None if track.claimed is None else round(track.claimed * rate)
                    self._require_short(track.claimed if track.exact and track.claimed else 0)
                if (rate, channels) != (self.rate, self.channels):
                    raise MediaError(
                        f"{self.name} changes at second {position / self.rate:.1f} from {self.channels} channels at "
                        f"{self.rate} Hz to {channels} at {rate} Hz; convert it to one format first"
                    )
                form = frame.format.name
                arrays.append(frame.to_ndarray())
                count += frame.samples
                position += frame.samples
            if arrays:
                yield _as_floats(arrays, form, self.channels)

    def _begin(self, rate: int, channels: int) -> None:
        if isinstance(rate, bool) or not isinstance(rate, Integral) or not 0 < rate <= MAX_RATE:
            raise MediaError(f"{self.name} has a rate of {rate!r} Hz; it must be a whole number from 1 to {MAX_RATE}")
        if not 0 < channels <= MAX_CHANNELS:
            raise MediaError(f"{self.name} has {channels} channels; give 1 to {MAX_CHANNELS} of them")
        self.rate, self.channels = int(rate), channels

    def _require_short(self, seconds: float) -> None:
        if seconds > MAX_HOURS * 3600:
            raise MediaError(f"{self.name} is longer than {MAX_HOURS} hours; cut it into parts")


def _as_tensor(samples: numpy.ndarray | torch.Tensor) -> torch.Tensor:
    """float32 (channels, samples) of a waveform's samples."""
    if isinstance(samples, numpy.ndarray) and samples.dtype.kind == "f":
        samples = torch.from_numpy(samples.astype(numpy.float32))
    if not isinstance(samples, torch.Tensor) or not samples.is_floating_point() or samples.ndim not in (1, 2):
        shown = f"an object of type {type(samples).__name__}"
        if hasattr(samples, "dtype"):
            shown += f" with shape {tuple(samples.shape)} and numbers of type {samples.dtype}"
        raise MediaError(
            f"{shown} is no waveform; give an array or tensor of floats in [-1, 1], (samples,) or (channels, samples)"
        )
    samples = samples.detach().to("cpu", torch.float32)
    return samples[None] if samples.ndim == 1 else samples


def _as_floats(arrays: list[numpy.ndarray], form: str, channels: int) -> torch.Tensor:
    """float32 (channels, samples) of frames (channels, n), or (1, n * channels) with the channels interleaved."""
    samples = numpy.concatenate(arrays, axis=1)
    if not form.endswith("p"):
        samples = samples.reshape(-1, channels).T
    kind = form.removesuffix("p")
    samples = torch.from_numpy(numpy.ascontiguousarray(samples, dtype=numpy.float32))
    if kind == "u8":
        samples -= 128
    return samples.mul_(1 / _SCALES[kind])
