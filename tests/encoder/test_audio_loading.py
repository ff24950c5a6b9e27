"""Recordings: every kind of source, the clips that are looked at, windows, and what is said of broken files."""

import base64
import os
import weakref
from fractions import Fraction

import numpy
import pytest
import torch
from recorded_sounds import encoded, silent_film, wav, wav_of

from imagebind_encoder.config import AudioConfig, ConfigError
from imagebind_encoder.media.audio import Waveform, audio_windows, load_audio
from imagebind_encoder.media.mel import mel_spectrogram
from imagebind_encoder.media.recording import Recording
from imagebind_encoder.media.resample import resample
from imagebind_encoder.media.source import MediaError
from imagebind_encoder.media.track import PATIENCE, SEEK, _Watched
from imagebind_encoder.media.windows import Windows

SMALL = (31, 57)  # mel bins and frames
CODECS = {  # format of the container, codec
    "wav": ("wav", "pcm_s16le"), "flac": ("flac", "flac"), "ogg": ("ogg", "libopus"), "mp3": ("mp3", "libmp3lame"),
    "m4a": ("ipod", "aac"), "webm": ("webm", "libopus"), "mkv": ("matroska", "aac"), "mp4": ("mp4", "aac"),
    "mov": ("mov", "pcm_s16le"),
}  # fmt: skip
FILMS = ("webm", "mkv", "mp4", "mov")


def tone(seconds, rate, channels=1, hertz=1000):
    """float32 (channels, samples): a tone that grows louder, with some noise; every channel is another."""
    time = numpy.arange(round(seconds * rate)) / rate
    pitches = hertz * numpy.arange(1, channels + 1)[:, None]
    noise = numpy.random.default_rng(0).standard_normal((channels, len(time)))
    return (numpy.sin(2 * numpy.pi * pitches * time) * (0.1 + 0.4 * time / seconds) + 0.002 * noise).astype("float32")


def samples_of(source):
    recording = Recording(source)
    return torch.cat(list(recording.blocks()), dim=1), recording.rate


def by_hand(samples, rate, config, size):
    """What `load_audio` gives, one clip after the other over the whole recording, as the original does it."""
    whole = resample(samples.clone(), rate, config.rate)
    total, length = whole.shape[1], int(config.seconds * config.rate)
    spare = Fraction(max(total / config.rate - config.seconds, 0))
    mels = []
    for number in range(config.clips):
        start = int(spare * number / max(config.clips - 1, 1) * config.rate)
        clip = whole[:, start : start + length]
        if config.overlap == "separate":
            clip = clip.clone()
        clip -= clip.mean()
        mel = mel_spectrogram(clip[0].clone(), size[0], config.rate)[:, : size[1]]
        mels.append(torch.nn.functional.pad(mel, (0, size[1] - mel.shape[1])))
    return ((torch.stack(mels) - config.mean) / config.std)[:, None]


@pytest.mark.parametrize("kind", CODECS)
def test_every_format_is_read(kind, tmp_path):
    rate = 48000 if CODECS[kind][1] == "libopus" else 44100
    path = tmp_path / f"sound.{kind}"
    path.write_bytes(encoded(tone(2.7, rate, 2), rate, *CODECS[kind], film=kind in FILMS))
    mel = load_audio(path)
    assert mel.shape == (3, 1, 128, 204) and mel.dtype == torch.float32
    expected = load_audio(Waveform(tone(2.7, rate, 2), rate))
    loud = expected > 0.5  # what lossy coding leaves alone
    assert (mel - expected)[loud].abs().mean() < (0.01 if kind in ("wav", "flac", "mov") else 0.1)
    assert mel[..., :190].mean(dim=-1).argmax(dim=2).eq(expected[..., :190].mean(dim=-1).argmax(dim=2)).all()
    samples, rate = samples_of(path)
    assert torch.equal(mel, load_audio(Waveform(samples, rate)))


def test_path_bytes_url_and_data_uri_are_the_same(tmp_path):
    data = encoded(tone(0.4, 8000), 8000, "ipod", "aac")  # it claims another length: read twice, fetched once
    path = tmp_path / "x.txt"
    path.write_bytes(data)
    asked = []

    def fetch(url):
        asked.append(url)
        return data

    expected = load_audio(path, size=SMALL)
    uri = "data:audio/mp4;base64," + base64.b64encode(data).decode()
    for source in (str(path), data, bytearray(data), memoryview(data), uri):
        assert torch.equal(load_audio(source, size=SMALL), expected)
    assert torch.equal(load_audio("https://example.org/x", size=SMALL, fetch=fetch), expected)
    windows = list(audio_windows("https://example.org/y", Windows(5), size=SMALL, fetch=fetch))
    assert len(windows) == 1 and torch.equal(windows[0], expected[:1])
    assert asked == ["https://example.org/x", "https://example.org/y"]


@pytest.mark.parametrize("samples, bits, tag, expected", [
    (numpy.array([0, 128, 255, 64], "u1"), 8, 1, [-1, 0, 127 / 128, -0.5]),
    (numpy.array([-32768, 0, 32767, 1], "<i2"), 16, 1, [-1, 0, 32767 / 32768, 1 / 32768]),
    (numpy.array([0, 0, 128, 255, 255, 127, 1, 0, 0, 0, 0, 0], "u1"), 24, 1, [-1, 1 - 2**-23, 2**-23, 0]),
    (numpy.array([-(2**31), 2**30, 256, 0], "<i4"), 32, 1, [-1, 0.5, 2**-23, 0]),
    (numpy.array([-1.5, 0.25, 2e-8, 0], "<f4"), 32, 3, [-1.5, 0.25, 2e-8, 0]),
    (numpy.array([-1.5, 0.25, 2e-8, 0], "<f8"), 64, 3, [-1.5, 0.25, 2e-8, 0]),
])  # fmt: skip
def test_samples_are_scaled_by_their_type(samples, bits, tag, expected):
    found, rate = samples_of(wav(samples.tobytes(), 22050, 1, bits, tag))
    assert rate == 22050 and torch.equal(found, torch.tensor([expected], dtype=torch.float32))
    found, _ = samples_of(wav(samples.tobytes(), 22050, 2, bits, tag))
    assert torch.equal(found, torch.tensor(expected, dtype=torch.float32).view(2, 2).T)


@pytest.mark.parametrize("overlap", ["shared", "separate"])
@pytest.mark.parametrize("seconds, rate, channels, config", [
    (0.03, 16000, 1, {}), (1.3, 16000, 1, {}), (2.0, 16000, 2, {}), (2.7, 11025, 1, {}), (5.9, 16000, 2, {}),
    (6.0, 16000, 1, {}), (11.3, 44100, 3, {}), (3.1, 7919, 2, {}), (4.0, 16000, 1, {"clips": 1}),
    (1.7, 22050, 2, {"clips": 4, "seconds": 0.61, "rate": 9000, "mean": 1.5, "std": 3.0}),
])  # fmt: skip
def test_clips_are_those_of_the_whole(overlap, seconds, rate, channels, config):
    config, samples = AudioConfig(overlap=overlap, **config), torch.from_numpy(tone(seconds, rate, channels))
    samples += 0.1 * torch.arange(1, channels + 1)[:, None]  # another mean in every channel
    expected = by_hand(samples, rate, config, SMALL)
    before = samples.clone()
    found = load_audio(Waveform(samples, rate), config, SMALL)
    assert found.shape == (config.clips, 1, *SMALL) and torch.equal(samples, before)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(load_audio(wav_of(before.numpy(), rate), config, SMALL), found, rtol=0, atol=1e-6)


def test_shared_clips_differ_only_where_they_overlap_others():
    offset = torch.linspace(0, 0.5, 16000 * 5)[None] + torch.from_numpy(tone(5, 16000))
    for seconds, same in ((5.0, [True, False, False]), (6.5, [True, True, True])):
        samples = torch.nn.functional.pad(offset, (0, round(seconds * 16000) - offset.shape[1]))
        shared = load_audio(Waveform(samples, 16000))
        separate = load_audio(Waveform(samples, 16000), AudioConfig(overlap="separate"))
        equal = [torch.allclose(one, other, rtol=0, atol=1e-3) for one, other in zip(shared, separate, strict=True)]
        assert equal == same, seconds


def test_what_a_clip_lacks_is_zero_before_normalisation():
    mel = load_audio(Waveform(torch.zeros(16000), 16000))
    assert torch.allclose(mel[..., :98], torch.tensor((-15.942385 + 4.268) / 9.138))
    assert torch.equal(mel[..., 98:], torch.full((3, 1, 128, 106), 4.268).div(9.138))


def test_only_the_first_channel_is_heard():
    left, right = torch.from_numpy(tone(2, 16000, 2))
    alone, both = (load_audio(Waveform(w, 16000)) for w in (left, torch.stack([left, right])))
    torch.testing.assert_close(both, alone, rtol=0, atol=5e-3)  # the mean of a tone is nearly 0


def test_waveforms_of_any_float_type():
    samples = tone(0.5, 8000, 2)
    expected = load_audio(Waveform(samples, 8000), size=SMALL)
    for same in (samples.astype("float64"), torch.from_numpy(samples).requires_grad_(), numpy.asfortranarray(samples)):
        found = load_audio(Waveform(same, numpy.int64(8000)), size=SMALL)
        assert torch.equal(found, expected) and not found.requires_grad
    mono = load_audio(Waveform(samples[0], 8000), size=SMALL)
    assert torch.equal(mono, load_audio(wav_of(samples[:1], 8000), size=SMALL))


@pytest.mark.parametrize("seconds, hop, duration", [
    (1.0, None, 3.7), (2.0, None, 6.0), (2.5, 1.1, 7.03), (4.0, 0.9, 5.0), (5.0, 8.0, 17.3), (0.025, None, 0.11),
    (3.0, None, 1.2), (9.0, None, 4.0),
])  # fmt: skip
@pytest.mark.parametrize("rate", [16000, 11025])
@pytest.mark.parametrize("overlap", ["shared", "separate"])
def test_a_window_is_a_file_of_its_own(seconds, hop, duration, rate, overlap):
    samples, config = torch.from_numpy(tone(duration, rate, 2)) + 0.1, AudioConfig(overlap=overlap)
    windows = Windows(seconds, hop)
    found = list(audio_windows(wav_of(samples.numpy(), rate), windows, config, SMALL))
    total, length = samples.shape[1], round(seconds * rate)
    starts = [round(start * rate) for start in windows.starts(total / rate)]
    assert len(found) == len(starts)
    assert starts[0] == 0 and abs(starts[-1] + min(length, total) - total) <= 1
    for window, start in zip(found, starts, strict=True):
        start = max(0, min(start, total - length))
        expected = load_audio(Waveform(samples[:, start : start + length], rate), config, SMALL)
        assert torch.equal(window, expected[:1] if min(seconds, duration) <= 2 else expected)


def test_the_last_window_ends_with_the_recording_to_the_sample():
    samples = torch.from_numpy(tone(5001 / 11025, 11025))
    *_, last = audio_windows(Waveform(samples, 11025), Windows(0.3), size=SMALL)  # 3307.5 samples long
    assert torch.equal(last, load_audio(Waveform(samples[:, -3308:], 11025), size=SMALL)[:1])


class Silence(Recording):
    """Ten hours that never were a file, and how many of their blocks are in memory at a time."""

    hours, most = 10, 0

    def _joined(self):
        self._begin(1000, 1)
        alive = []
        for _ in range(self.hours * 600):
            block = torch.zeros(1, 6000)
            alive = [other for other in alive if other() is not None] + [weakref.ref(block)]
            Silence.most = max(Silence.most, len(alive))
            yield block


def test_memory_does_not_grow_with_length(monkeypatch):
    monkeypatch.setattr("imagebind_encoder.media.audio.Recording", Silence)
    assert load_audio("ten hours", size=SMALL).shape == (3, 1, *SMALL)
    assert 0 < Silence.most <= 8  # three clips of two seconds lie in up to two blocks each
    Silence.hours = 2
    windows = list(audio_windows("two hours", Windows(600, hop=300), size=SMALL))
    assert [window.shape for window in windows] == [(3, 1, *SMALL)] * 23
    assert Silence.most <= 14  # two windows at a time


def silent_wav(path, hours):
    seconds = round(hours * 3600)
    path.write_bytes(wav(b"", 8000, size=16000 * seconds))
    os.truncate(path, path.stat().st_size + 16000 * seconds)
    return path


def test_long_silence_is_read(tmp_path):
    path = silent_wav(tmp_path / "silence.wav", 0.1)
    assert max(block.shape[1] for block in Recording(path).blocks()) < 2**17
    mel = load_audio(path)
    assert torch.allclose(mel[..., :198], torch.tensor(-1.2776), atol=1e-4)


def test_what_claims_to_be_too_long_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("imagebind_encoder.media.recording._as_floats", None)
    with pytest.raises(MediaError, match=r"silence.wav' is longer than 12 hours; cut it into parts"):
        load_audio(silent_wav(tmp_path / "silence.wav", 13))


def test_what_turns_out_to_be_too_long_is_refused(monkeypatch):
    monkeypatch.setattr("imagebind_encoder.media.recording.MAX_HOURS", 0.001)
    with pytest.raises(MediaError, match=r"the waveform is longer than 0.001 hours; cut it into parts"):
        load_audio(Waveform(tone(3.7, 16000), 16000))


@pytest.mark.parametrize("head", [b"", b"RIFF\xff\xff\xff\xffWAVE", b"ID3\x03\0\0\x7f\x7f\x7f\x7f", b"fLaC", b"OggS"])
def test_eight_gigabytes_of_nothing_are_not_read(tmp_path, monkeypatch, head):
    path = tmp_path / "large.wav"
    path.write_bytes(head)
    os.truncate(path, 8 << 30)
    seeks, seek = [], _Watched.seek
    monkeypatch.setattr(_Watched, "seek", lambda self, *place: seeks.append(place) or seek(self, *place))
    with pytest.raises(MediaError, match="large.wav' is no recording that can be read"):
        load_audio(path)
    assert len(seeks) < 10 + PATIENCE // SEEK


def test_large_recordings_are_read_to_their_end(monkeypatch):
    monkeypatch.setattr("imagebind_encoder.media.track.PATIENCE", 2**18)
    data = encoded(tone(12, 44100), 44100, *CODECS["flac"])
    assert len(data) > 2**19 and samples_of(data)[0].shape == (1, 12 * 44100)


def test_gaps_in_time_are_no_damage():
    data = encoded(tone(2, 44100), 44100, *CODECS["mkv"], gap=7)
    assert abs(samples_of(data)[0].shape[1] / 44100 - 2) < 0.1


def test_nothing_behind_a_recording_is_searched_in_vain(tmp_path, monkeypatch):
    monkeypatch.setattr("imagebind_encoder.media.track.PATIENCE", 2**20)
    path = tmp_path / "large.flac"
    path.write_bytes(encoded(tone(0.5, 8000), 8000, "flac", "flac"))
    os.truncate(path, 8 << 30)
    assert torch.equal(load_audio(path, size=SMALL), load_audio(Waveform(samples_of(path)[0], 8000), size=SMALL))


def broken(data, kind):
    half = len(data) // 2
    noise = numpy.random.default_rng(1).bytes(len(data) // 8)
    return {"cut": data[:half], "noise": data[:half] + noise + data[half + len(noise) :]}[kind]


@pytest.mark.parametrize("kind, how", [
    ("wav", "cut"), ("flac", "cut"), ("mp3", "cut"), ("mp3", "noise"), ("m4a", "cut"), ("m4a", "noise"),
    ("webm", "cut"),
])  # fmt: skip
def test_damage_is_named_with_its_second(kind, how):
    rate = 48000 if CODECS[kind][1] == "libopus" else 44100
    options = {"movflags": "faststart"} if kind == "m4a" else {}
    data = broken(encoded(tone(4, rate), rate, *CODECS[kind], **options), how)
    said = rf"{len(data)} bytes is broken or cut off from second [12]\.\d on \(.*\); copy or download it again"
    with pytest.raises(MediaError, match=said):
        load_audio(data)
    with pytest.raises(MediaError, match=said):  # at once, not when the window is reached
        audio_windows(data, Windows(1))


def test_damage_is_named_where_the_length_is_not_known():
    data = encoded(tone(4, 44100), 44100, *CODECS["mkv"], film=True)
    half = len(data) // 2
    noise = numpy.random.default_rng(1).bytes(len(data) - half)
    with pytest.raises(MediaError, match=r"is broken or cut off from second [12]\.\d on \(Invalid data"):
        load_audio(data[:half] + noise)


@pytest.mark.parametrize("form, codec", [("ogg", "libopus"), ("flac", "flac")])
def test_a_hole_in_what_has_no_pauses_is_damage(form, codec):
    data = bytearray(encoded(tone(6, 48000), 48000, form, codec))
    first, last = len(data) * 4 // 10, len(data) * 8 // 10
    data[first:last] = bytes(last - first)
    with pytest.raises(MediaError, match=r"from second [12]\.\d on \(nothing is there for [1-4]\.\d seconds\); copy"):
        load_audio(data)


def test_a_tag_behind_the_sound_is_no_damage():
    data = encoded(tone(2.5, 44100), 44100, *CODECS["mp3"])
    assert torch.equal(load_audio(data + b"some words at the end " * 40), load_audio(data))


@pytest.mark.parametrize("packets, said", [(1, None), (2, "is broken or cut off from the start")])
def test_a_recording_may_start_within_a_packet_and_not_later(packets, said):
    options = {"write_xing": "0", "id3v2_version": "0"}
    data = bytearray(encoded(tone(1, 44100), 44100, *CODECS["mp3"], **options))
    starts = [place for place in range(len(data)) if data[place : place + 2] == data[:2]]
    for start in starts[:packets]:
        data[start + 4 : start + 40] = b"\xff" * 36
    if said is None:
        assert load_audio(data).shape == (3, 1, 128, 204)
    else:
        with pytest.raises(MediaError, match=said):
            load_audio(data)


def test_a_recording_in_two_formats_is_refused():
    options = {"write_xing": "0", "id3v2_version": "0"}
    data = b"".join(encoded(tone(1, 44100, channels), 44100, *CODECS["mp3"], **options) for channels in (1, 2))
    with pytest.raises(MediaError, match=r"at second 1\.0 from 1 channels at 44100 Hz to 2 at 44100 Hz; convert it"):
        load_audio(data)


NAN, HUGE = tone(1, 16000), tone(1, 16000) * 1e30
NAN[0, 4000] = numpy.nan
GOOD = tone(1, 16000).astype("<f4").tobytes()
BAD = {
    "3 samples": (wav_of(tone(1, 16000)[:, :3]), r"56 bytes has 3 samples \(0\.188 ms\) and the encoder needs"),
    "less than a frame": (Waveform(tone(1, 44100)[:, :1000], 44100), r"1000 samples \(22.7 ms\) .* at least 25 ms"),
    "no samples": (wav(b""), "44 bytes holds no samples"),
    "an empty waveform": (Waveform(numpy.zeros((2, 0)), 9), "the waveform holds no samples"),
    "0 Hz": (wav(GOOD, 0, bits=32, tag=3), "has a rate of 0 Hz; record or convert it again"),
    "0 Hz in memory": (Waveform(NAN, 0), "the waveform has a rate of 0 Hz; it must be a whole number from 1 to 384000"),
    "no whole rate": (Waveform(NAN, 16000.0), "a rate of 16000.0 Hz; it must be a whole number"),
    "a large rate": (Waveform(NAN, 384_001), "a rate of 384001 Hz; it must be a whole number from 1 to 384000"),
    "a huge rate": (wav(GOOD, 1_000_000, bits=32, tag=3), "has a rate of 1000000 Hz; it must be .* to 384000"),
    "NaN": (wav_of(NAN), r"has samples that are NaN or infinite, the first at second 0\.250; record or convert it"),
    "infinite": (Waveform(numpy.full(9, -numpy.inf), 16000), r"NaN or infinite, the first at second 0\.000"),
    "huge": (wav_of(HUGE), "has samples of enormous size; scale them to lie within -1 and 1"),
    "200 channels": (wav(GOOD, channels=200, bits=8), "has 200 channels; give 1 to 64 of them"),
    "samples first": (Waveform(NAN.T, 16000), "the waveform has 16000 channels; give 1 to 64 of them"),
    "unknown coding": (wav(GOOD, tag=0x1234), "holds sound in a coding that cannot be decoded; convert it"),
    "film without sound": (silent_film(), "has no sound; give a recording or a film with a sound track"),
    "words": (b"these are words, no sound\n" * 99, "2574 bytes is no recording that can be read"),
    "nothing": (b"", "0 bytes is empty"),
    "missing": ("no/such.wav", "there is no file 'no/such.wav'"),
    "directory": (".", "'.' is a directory"),
    "number": (3, "an object of type int is no recording; give a path"),
    "bare array": (NAN, "an object of type ndarray is no recording"),
    "whole numbers": (Waveform(numpy.zeros((2, 9), "int16"), 9), r"shape \(2, 9\) and .* int16 is no waveform; give"),
    "list": (Waveform([0.0, 0.1], 9), r"type list is no waveform; give an array or tensor of floats in \[-1, 1\]"),
    "three axes": (Waveform(torch.zeros(1, 2, 3), 9), r"shape \(1, 2, 3\) .* is no waveform"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_recording_is_said_in_a_sentence(name):
    source, sentence = BAD[name]
    with pytest.raises(MediaError, match=sentence) as caught:
        load_audio(source)
    assert "\n" not in str(caught.value) and ";" in str(caught.value)
    with pytest.raises(MediaError, match=sentence):
        list(audio_windows(source, Windows(2)))


def test_a_window_shorter_than_a_frame_is_refused():
    with pytest.raises(MediaError, match=r"a window of 0.02 seconds is shorter than a frame; give at least 0.025"):
        audio_windows(Waveform(tone(1, 8000), 8000), Windows(0.02))


@pytest.mark.parametrize("values, sentence", [({"seconds": 0.02}, "at least 0.025"), ({"rate": 999}, "at least 1000")])
def test_a_config_without_frames_is_refused(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        AudioConfig(**values)
