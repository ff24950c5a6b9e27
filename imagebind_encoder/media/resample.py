"""Sound from one rate to another: windowed sinc, of a whole recording or of any stretch of it.

A sample at the wanted rate is a weighted sum of the samples around its place in time: the weights are a
sinc that ends at 0.99 of the lower of the two half rates, under a Hann window over 6 of its zero crossings on
either side (the method of Smith, "Digital Audio Resampling", and the numbers of ImageBind's preprocessing).
The weights repeat after as many samples as the ratio of the rates has in lowest terms. They are kept in
blocks of neighbouring samples, so that rates without a common divisor take MBs and not GBs: 8 MB from about
44 kHz, 70 MB from about 384 kHz, the highest that recordings may have.
"""

import math
from functools import lru_cache

import torch

ZEROS = 6  # zero crossings of the sinc on either side
ROLLOFF = 0.99  # of the lower half rate: where the sinc ends in frequency
BLOCK = 32  # neighbouring output samples that are computed together


class Resampler:
    """From `rate` to `wanted` samples a second; build it through `resampler`, which keeps the last few."""

    def __init__(self, rate: int, wanted: int) -> None:
        common = math.gcd(rate, wanted)
        repeats = -(-BLOCK * common // wanted)  # a period of at least one block
        self.rate, self.wanted = rate, wanted
        self.step, self.period = rate // common * repeats, wanted // common * repeats  # input, output samples
        cutoff = min(rate, wanted) * ROLLOFF
        self.width = math.ceil(ZEROS * rate / cutoff)  # input samples on either side
        if rate == wanted:
            return
        starts = torch.arange(0, self.period, BLOCK) * self.step // self.period - self.width  # of each block's input
        taps = math.ceil(BLOCK * self.step / self.period) + 2 * self.width + 1
        self.taps = starts[:, None] + torch.arange(taps)  # (blocks, taps), from the start of the period
        outputs = torch.arange(len(starts) * BLOCK, dtype=torch.float64).view(-1, BLOCK)
        places = outputs * (self.step / self.period)  # of the output samples, in input samples
        self.weights = torch.empty(len(starts), taps, BLOCK, dtype=torch.float32)
        for block, place in enumerate(places):  # one by one: the doubles of all take many times the memory
            distance = self.taps[block, :, None] - place  # (taps, BLOCK)
            crossing = (distance * (cutoff / rate)).clamp_(-ZEROS, ZEROS)
            hann = torch.cos(crossing * (math.pi / ZEROS / 2)) ** 2
            self.weights[block] = torch.sinc(crossing) * hann * (cutoff / rate)

    def length(self, samples: int) -> int:
        """Samples that `samples` become."""
        return -(-samples * self.wanted // self.rate)

    def source(self, start: int, end: int) -> tuple[int, int]:
        """The input samples [first, last) that output samples [start, end) are made of; may reach beyond the ends."""
        if self.rate == self.wanted:
            return start, end
        first, last = start // self.period, -(-end // self.period)
        return first * self.step - self.width, (last - 1) * self.step + int(self.taps[-1, -1]) + 1

    def stretch(self, samples: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Output samples [start, end) from the input samples (..., last - first) that `source` names.

        Where `source` reaches beyond the recording, the caller puts zeros.
        """
        if self.rate == self.wanted:
            return samples
        first, last = start // self.period, -(-end // self.period)
        periods = torch.arange(last - first) * self.step + self.width
        index = periods[:, None, None] + self.taps  # (periods, blocks, taps)
        blocks = torch.einsum("...pbt,bto->...pbo", samples[..., index], self.weights)
        whole = blocks.flatten(-2)[..., : self.period].flatten(-2)
        return whole[..., start - first * self.period : end - first * self.period]


@lru_cache(maxsize=4)
def resampler(rate: int, wanted: int) -> Resampler:
    """The resampler of two rates, with its weights. Raises ValueError for a rate below 1."""
    if rate < 1 or wanted < 1:
        raise ValueError(f"cannot resample from {rate} to {wanted} samples a second; both must be positive")
    return Resampler(rate, wanted)


def resample(waveform: torch.Tensor, rate: int, wanted: int) -> torch.Tensor:
    """float32 (..., samples) at `rate` as (..., ceil(samples * wanted / rate)) at `wanted`."""
    kernel = resampler(rate, wanted)
    end = kernel.length(waveform.shape[-1])
    first, last = kernel.source(0, end)
    padded = torch.nn.functional.pad(waveform, (-first, last - waveform.shape[-1]))
    return kernel.stretch(padded, 0, end)
