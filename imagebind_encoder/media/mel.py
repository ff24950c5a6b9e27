"""Sound as a picture: the log-mel filter bank of Kaldi with ImageBind's settings.

Frames of 25 ms every 10 ms, only whole ones. Of each: its mean removed, pre-emphasis, a symmetric Hann window, power
spectrum of the next power of two, triangles equally wide on the mel scale from 20 Hz to half the rate, natural log.
With 128 bins at 16 kHz one triangle (number 3) holds no line of the spectrum: it is log(EPSILON) in every
frame. Some libraries refuse to build such a bank; the published weights were trained on it.
"""

from functools import lru_cache

import torch

FRAME, SHIFT = 0.025, 0.010  # seconds
PRE_EMPHASIS = 0.97
LOWEST = 20.0  # Hz
EPSILON = 1.1920929e-7  # of float32: the least a bin can hold before the logarithm


def frame_length(rate: int) -> int:
    """Samples of a frame: a shorter waveform has none."""
    return int(rate * FRAME)


def mel_spectrogram(waveforms: torch.Tensor, bins: int = 128, rate: int = 16000) -> torch.Tensor:
    """(..., bins, frames) natural logarithms of float32 (..., samples), samples in [-1, 1].

    frames is 1 + (samples - 400) // 160 at 16 kHz. Raises ValueError for less than one frame.
    """
    length, shift = frame_length(rate), int(rate * SHIFT)
    if waveforms.shape[-1] < length:
        raise ValueError(f"{waveforms.shape[-1]} samples are less than one frame of {length}; give a longer waveform")
    frames = waveforms.unfold(-1, length, shift)  # (..., frames, length)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)  # the first sample comes after itself
    window = torch.hann_window(length, periodic=False)
    frames = (frames - PRE_EMPHASIS * before) * window
    lines = _lines(length)
    power = torch.view_as_real(torch.fft.rfft(frames, n=lines)).square().sum(dim=-1)
    energy = power @ _filter_bank(bins, rate, lines)
    return energy.clamp_(min=EPSILON).log_().transpose(-1, -2)


def _lines(length: int) -> int:
    return 1 << (length - 1).bit_length()


def _mel(frequency: torch.Tensor) -> torch.Tensor:
    return 1127.0 * torch.log1p(frequency / 700.0)


@lru_cache(maxsize=8)
def _filter_bank(bins: int, rate: int, lines: int) -> torch.Tensor:
    """(lines / 2 + 1, bins): the weight of each line of the spectrum in each bin."""
    spectrum = _mel(torch.arange(lines // 2 + 1, dtype=torch.float64) * rate / lines)
    low, high = _mel(torch.tensor([LOWEST, rate / 2], dtype=torch.float64))
    edges = low + torch.arange(bins + 2) * ((high - low) / (bins + 1))
    rising = (spectrum[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - spectrum[:, None]) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp_(min=0).float()
