"""Recordings: any source -> (clips, 1, mel bins, frames), or one such tensor a window.

A recording is looked at through a few clips of equal length spread evenly from its first second to its last.
Only they are resampled and kept, so memory does not depend on how long the recording is. The defaults are
ImageBind's own preprocessing, number for number: all channels lose their common mean, the first one is heard,
and the mean of a clip is taken from samples that it shares with its neighbours.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeVar

import torch

from ..config import AudioConfig
from .mel import frame_length, mel_spectrogram
from .recording import Recording, Waveform
from .resample import resampler
from .source import Fetch, MediaError, Source
from .windows import Windows

__all__ = ["Waveform", "audio_windows", "clip_places", "load_audio"]

T = TypeVar("T")
SIZE = (128, 204)  # mel bins and frames of the published stem
Range = tuple[int, int]


def load_audio(
    source: Source | Waveform,
    config: AudioConfig = AudioConfig(),
    size: tuple[int, int] = SIZE,
    *,
    fetch: Fetch | None = None,
) -> torch.Tensor:
    """float32 (clips, 1, mel bins, frames) of a recording, normalised by `config.mean` and `config.std`.

    A source is the path, bytes, http(s) URL or data: URI of a sound file or of a film with sound, of any rate
    and number of channels, or a `Waveform`. `size` is that of the tensor: (mel bins, frames). Frames that a
    clip is too short for are 0 before normalisation, as in the original. `fetch(url) -> bytes` replaces
    the download.
    Raises MediaError: unreadable source, no sound track, broken or cut off, longer than 12 hours, less than
    one frame (25 ms), samples that are NaN or infinite.
    """
    recording = Recording(source, fetch)
    # What a file claims is often right. If it is not, one reading tells how long it is, and the next finds the clips.
    blocks, claimed = recording.blocks(), recording.expected
    found = list(_stretches(blocks, [(0, claimed)] if claimed else [], recording.rate, config))
    _require_audible(recording, recording.samples, config)
    if recording.samples != claimed:
        found = list(_stretches(recording.blocks(), [(0, recording.samples)], recording.rate, config))
    return _as_mel(found[0], recording, config, size)


def audio_windows(
    source: Source | Waveform,
    windows: Windows,
    config: AudioConfig = AudioConfig(),
    size: tuple[int, int] = SIZE,
    *,
    fetch: Fetch | None = None,
) -> Iterator[torch.Tensor]:
    """One tensor a window, each what `load_audio` gives for a file of just that window.

    Of a window no longer than one clip all clips are the same, and only the first is given. The recording
    is read once before this returns, so that errors come first and the last window ends where it does.
    Sources and errors are those of `load_audio`.
    """
    recording = Recording(source, fetch)
    for _ in recording.blocks():
        pass
    total, length = recording.samples, round(windows.seconds * recording.rate)
    _require_audible(recording, total, config)
    if resampler(recording.rate, config.rate).length(length) < frame_length(config.rate):
        raise MediaError(f"a window of {windows.seconds:g} seconds is shorter than a frame; give at least 0.025")
    last = max(0, total - length)
    starts = (min(round(start * recording.rate), last) for start in windows.starts(total / recording.rate))
    ranges = ((start, min(start + length, total)) for start in starts)
    one = min(length, total) <= config.seconds * recording.rate
    return (
        _as_mel(clips[:1] if one else clips, recording, config, size)
        for clips in _stretches(recording.blocks(), ranges, recording.rate, config)
    )


def _require_audible(recording: Recording, samples: int, config: AudioConfig) -> None:
    needed = frame_length(config.rate)
    if resampler(recording.rate, config.rate).length(samples) < needed:
        raise MediaError(
            f"{recording.name} has {samples} samples ({1000 * samples / recording.rate:.3g} ms) and the encoder "
            f"needs at least {1000 * needed / config.rate:g} ms; give a longer recording"
        )


def _as_mel(clips: list[torch.Tensor], recording: Recording, config: AudioConfig, size: Range) -> torch.Tensor:
    """(clips, 1, mel bins, frames) of clips (samples,)."""
    bins, frames = size
    mel = mel_spectrogram(torch.stack(clips), bins, config.rate)[..., :frames]
    mel = torch.nn.functional.pad(mel, (0, frames - mel.shape[-1]))
    mel = mel.sub_(config.mean).div_(config.std)[:, None]
    if not bool(mel.isfinite().all()):
        raise MediaError(f"{recording.name} has samples of enormous size; scale them to lie within -1 and 1")
    return mel


def clip_places(samples: int, config: AudioConfig) -> list[Range]:
    """Each clip's first sample and the one behind its last, of a waveform at `config.rate`.

    Starts are exact fractions of a duration in floating point, cut to whole samples: so the original does it.
    """
    length = int(config.seconds * config.rate)
    spread = Fraction(max(samples / config.rate - config.seconds, 0)) / max(config.clips - 1, 1)
    starts = [int(spread * number * config.rate) for number in range(config.clips)]
    return [(start, min(start + length, samples)) for start in starts]


def _runs(places: list[Range]) -> list[list[Range]]:
    """Neighbouring places that overlap or touch, together."""
    runs: list[list[Range]] = []
    for place in places:
        if runs and place[0] <= runs[-1][-1][1]:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _stretches(
    blocks: Iterable[torch.Tensor], stretches: Iterable[Range], rate: int, config: AudioConfig
) -> Iterator[list[torch.Tensor]]:
    """The clips (samples,) of each stretch of a recording, a stretch being treated as a file of its own.

    Of a stretch only what its clips need is kept and resampled. A stretch that the recording is too short for
    is left out. The blocks are read to their end.
    """
    kernel = resampler(rate, config.rate)

    def planned(stretch: Range) -> tuple[Range, list[list[Range]], list[Range]]:
        start, end = stretch
        runs = _runs(clip_places(kernel.length(end - start), config))
        sources = [kernel.source(run[0][0], run[-1][1]) for run in runs]
        return stretch, runs, [(start + max(0, first), min(start + last, end)) for first, last in sources]

    requests = ((plan[2], plan) for plan in map(planned, stretches))
    for pieces, ((start, end), runs, _) in _collected(blocks, requests):
        clips = []
        for run, piece in zip(runs, pieces, strict=True):
            first, last = kernel.source(run[0][0], run[-1][1])
            padded = torch.nn.functional.pad(piece, (max(0, -first), max(0, last - (end - start))))
            samples = kernel.stretch(padded, run[0][0], run[-1][1])
            clips += _without_mean([samples[:, a - run[0][0] : b - run[0][0]] for a, b in run], config)
        yield clips


def _collected(
    blocks: Iterable[torch.Tensor], requests: Iterable[tuple[list[Range], T]]
) -> Iterator[tuple[list[torch.Tensor], T]]:
    """The ranges of each request, cut out of blocks (channels, n) that follow each other, in memory of their own.

    Requests come in the order of their starts.
    """
    coming = iter(requests)
    following = next(coming, None)
    waiting: deque[tuple[list[Range], T, list[list[torch.Tensor]]]] = deque()
    position = 0
    for block in blocks:
        end = position + block.shape[1]
        while following and following[0][0][0] < end:
            waiting.append((*following, [[] for _ in following[0]]))
            following = next(coming, None)
        for ranges, _, pieces in waiting:
            for (first, last), parts in zip(ranges, pieces, strict=True):
                if first < end and last > position:
                    parts.append(block[:, max(0, first - position) : last - position])
        while waiting and waiting[0][0][-1][1] <= end:
            _, label, pieces = waiting.popleft()
            yield [torch.cat(parts, dim=1) for parts in pieces], label
        position = end


def _without_mean(clips: list[torch.Tensor], config: AudioConfig) -> list[torch.Tensor]:
    """The first channel of each clip (channels, samples), less the mean of all channels.

    "shared": in place, one after the other. Where a clip overlaps earlier ones, it has lost their means, too.
    """
    heard = []
    for clip in clips:
        clip = clip if config.overlap == "shared" else clip.clone()
        clip -= clip.mean()
        heard.append(clip[0].clone())
    return heard
