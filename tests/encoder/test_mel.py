"""The mel filter bank and the resampler against their formulas, written out number by number, and recorded ones."""

import json
import math

import numpy
import pytest
import torch
from recorded_sounds import every_nth
from safetensors.torch import load_file

from imagebind_encoder.media.mel import EPSILON, frame_length, mel_spectrogram
from imagebind_encoder.media.recording import MAX_RATE, Recording
from imagebind_encoder.media.resample import resample, resampler

RATES = [(8000, 16000), (22050, 16000), (44100, 16000), (48000, 16000), (7919, 16000), (16000, 7919), (501, 16000)]


def mel_by_definition(samples, bins, rate):
    """(bins, frames) in float64: a sum over every line of a spectrum that is itself a sum over samples."""
    length, shift = round(rate * 0.025), round(rate * 0.010)
    lines = 2 ** math.ceil(math.log2(length))
    mel = lambda frequency: 1127 * math.log(1 + frequency / 700)  # noqa: E731
    width = (mel(rate / 2) - mel(20)) / (bins + 1)
    turns = numpy.exp(-2j * math.pi * numpy.outer(numpy.arange(lines // 2), numpy.arange(length)) / lines)
    columns = []
    for start in range(0, len(samples) - length + 1, shift):
        frame = samples[start : start + length].astype(numpy.float64)
        frame = frame - frame.mean()
        emphasised = [frame[i] - 0.97 * frame[max(i - 1, 0)] for i in range(length)]
        hann = [0.5 - 0.5 * math.cos(2 * math.pi * i / (length - 1)) for i in range(length)]
        power = numpy.abs(turns @ (numpy.array(emphasised) * hann)) ** 2
        column = []
        for number in range(bins):
            middle = mel(20) + (number + 1) * width
            weights = [max(0.0, 1 - abs(mel(line * rate / lines) - middle) / width) for line in range(lines // 2)]
            column.append(math.log(max(power @ numpy.array(weights), 1.1920929e-7)))
        columns.append(column)
    return numpy.array(columns).T


@pytest.mark.parametrize("bins, rate, samples", [(128, 16000, 1700), (23, 8000, 777), (40, 22050, 1653)])
def test_mel_is_what_it_is_defined_to_be(bins, rate, samples):
    waveform = torch.randn(samples) * 0.2 + 0.05
    mel = mel_spectrogram(waveform, bins, rate)
    expected = mel_by_definition(waveform.numpy(), bins, rate)
    assert mel.dtype == torch.float32 and mel.shape == expected.shape
    assert numpy.abs(mel.numpy() - expected).max() < 1e-3


def test_bin_3_holds_no_line_of_the_spectrum():
    mel = mel_spectrogram(torch.randn(3, 5000))
    empty = (mel == math.log(EPSILON)).all(dim=-1).all(dim=0)
    assert empty.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("samples, frames", [(400, 1), (559, 1), (560, 2), (32000, 198)])
def test_only_whole_frames_count(samples, frames):
    assert mel_spectrogram(torch.randn(2, samples)).shape == (2, 128, frames)


def test_a_batch_is_its_waveforms_one_by_one():
    waveforms = torch.randn(2, 3, 1300)
    together = mel_spectrogram(waveforms, 31)
    assert together.shape == (2, 3, 31, 6)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], mel_spectrogram(waveforms[i, j], 31), rtol=0, atol=1e-4)


def test_waveforms_are_not_changed():
    waveform = torch.randn(900)
    before = waveform.clone()
    mel_spectrogram(waveform)
    resample(waveform, 8000, 16000)
    resample(waveform, 16000, 16000)
    assert torch.equal(waveform, before)


def test_less_than_a_frame_is_refused():
    assert frame_length(16000) == 400
    with pytest.raises(ValueError, match="399 samples are less than one frame of 400"):
        mel_spectrogram(torch.zeros(399))


def resampled_by_definition(samples, rate, wanted):
    """Every sample at the new rate is a sum over all of the old ones."""
    cutoff = 0.99 * min(rate, wanted)
    numbers = numpy.arange(math.ceil(len(samples) * wanted / rate))
    crossing = (numpy.arange(len(samples)) / rate - numbers[:, None] / wanted) * cutoff
    hann = numpy.where(abs(crossing) < 6, numpy.cos(math.pi * crossing / 12) ** 2, 0)
    return numpy.sinc(crossing) * hann @ samples * cutoff / rate


@pytest.mark.parametrize("rate, wanted", RATES)
def test_resampling_is_what_it_is_defined_to_be(rate, wanted):
    waveform = torch.randn(411)
    found = resample(waveform, rate, wanted)
    expected = resampled_by_definition(waveform.double().numpy(), rate, wanted)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert numpy.abs(found.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("rate, wanted", [*RATES, (16000, 16000)])
def test_any_stretch_equals_the_whole(rate, wanted):
    waveform = torch.randn(3, 2500)
    whole, kernel = resample(waveform, rate, wanted), resampler(rate, wanted)
    assert whole.shape[-1] == kernel.length(2500)
    for start, end in ((0, 1), (0, whole.shape[-1]), (5, 71), (320, 640), (401, 402), (777, whole.shape[-1])):
        first, last = kernel.source(start, end)
        inside = waveform[:, max(0, first) : max(0, last)]
        padded = torch.nn.functional.pad(inside, (max(0, -first), max(0, last - 2500)))
        found = kernel.stretch(padded, start, end)
        assert found.shape == (3, end - start)
        torch.testing.assert_close(found, whole[:, start:end], rtol=0, atol=2e-6)


def test_weights_are_small_and_kept():
    resampler(44099, 16000)  # no common divisor: the textbook's table has 16000 x 44135 entries
    assert resampler(44099, 16000).weights.numel() < 3e6
    assert resampler(44099, 16000) is resampler(44099, 16000)
    assert resampler(MAX_RATE - 1, 16000).weights.numel() < 2e7  # the most of all rates that recordings may have
    assert resampler.cache_info().maxsize * 2e7 * 4 < 400e6  # bytes


def test_rates_that_are_none_are_refused():
    for rate, wanted in ((0, 16000), (16000, 0), (-1, 16000)):
        with pytest.raises(ValueError, match=f"from {rate} to {wanted} samples a second; both must be positive"):
            resample(torch.zeros(9), rate, wanted)


def test_resampled_recordings_equal_the_original(golden):
    folder = golden / "preprocess"
    if not (folder / "audio.safetensors").exists():
        pytest.skip(f"no recordings in {golden}")
    described = json.loads((folder / "preprocess.json").read_text())["audio"]
    recorded = load_file(folder / "audio.safetensors")
    found = {key: value for key, value in recorded.items() if ".resampled_" in key}
    assert found
    for key, expected in found.items():
        recording = Recording(folder / described[key.partition(".resampled_")[0]]["file"])
        samples = torch.cat(list(recording.blocks()), dim=1)
        resampled = every_nth(key, resample(samples, recording.rate, 16000))
        assert resampled.shape == expected.shape, key
        assert (resampled - expected).abs().max() / expected.square().mean().sqrt() < 2e-4, key
