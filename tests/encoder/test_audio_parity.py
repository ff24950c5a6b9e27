"""Recordings against the recorded filter banks of the original."""

import json

import pytest
from recorded_sounds import every_nth
from safetensors.torch import load_file

from imagebind_encoder.config import AudioConfig
from imagebind_encoder.media.audio import clip_places, load_audio

MOST, USUAL = 2e-2, 2e-3  # absolute, of the normalised log-mel; the first for bins that are nearly silent


@pytest.fixture(scope="module")
def described(golden):
    path = golden / "preprocess" / "preprocess.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    if "audio" not in content or not (path.parent / "audio.safetensors").exists():
        pytest.skip(f"no recordings in {golden}")
    return content


@pytest.fixture(scope="module")
def mels(golden, described):
    """{name: (recorded tensor, its key, path of the recording)}; the recording of some is not there."""
    folder = golden / "preprocess"
    found = {}
    for key, value in load_file(folder / "audio.safetensors").items():
        name, mel, _ = key.partition(".mel")
        if mel and name in described["audio"]:
            found[name] = value, key, folder / described["audio"][name]["file"]
    assert found
    return found


def test_the_original_is_met(mels):
    for name, (expected, key, path) in mels.items():
        loaded = load_audio(path)
        assert loaded.shape == (3, 1, 128, 204)
        off = (every_nth(key, loaded)[: len(expected)] - expected).abs()  # of some only the first clip is recorded
        assert off.shape == expected.shape, name
        assert off.max() < MOST and off.flatten().quantile(0.999) < USUAL, name


def test_clips_lie_where_the_original_cut_them(described):
    for name, entry in described["audio"].items():
        samples = entry["samples_16k"]
        expected = [(start, min(end, samples)) for start, end in entry["clip_samples"]]
        assert clip_places(samples, AudioConfig()) == expected, name


def test_separate_clips_differ_as_much_as_was_measured(mels, described):
    effects = described.get("audio_tolerance", {}).get("effect_of_not_sharing_samples_between_clips", {})
    compared = [name for name in mels if name in effects]
    if not compared:
        pytest.skip("no effects were recorded")
    for name in compared:
        path = mels[name][2]
        off = (load_audio(path, AudioConfig(overlap="separate")) - load_audio(path)).abs()
        assert abs(off.max().item() - effects[name]) < MOST, name
