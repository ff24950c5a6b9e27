"""The audio trunk's recipe: recordings from a folder, changed at random, a classifier and its class tokens."""

import random
import wave

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adapter_llm.sounds import Sound, load_samples, read_sounds, varied
from adapter_llm.train_audio import (
    SILENCE,
    AudioTraining,
    Batches,
    audio_config,
    fit_classifier,
    hear,
    solve_audio,
    spectrograms,
    start_from_pictures,
)
from imagebind_encoder import EncoderConfig, ImageBindEncoder, Modality, TrunkConfig
from imagebind_encoder.config import AudioConfig
from imagebind_encoder.media.audio import load_audio
from imagebind_encoder.media.recording import Waveform

BACKBONE = "test_efficientnet"  # timm's own, made for tests: 256 channels
CHANNELS, CLASSES, WIDTH = 256, 5, 12
CONFIG = AudioConfig(overlap="separate")
RATE, LONGEST = 16000, 32000
PADDING = (0 - CONFIG.mean) / CONFIG.std


@pytest.fixture
def encoder():
    """The default's shape, small, with a random classifier."""
    trunk = TrunkConfig(WIDTH, 0, 1, num_cls_tokens=2, backbone=BACKBONE, backbone_classes=CLASSES)
    encoder = ImageBindEncoder(EncoderConfig(WIDTH, {"audio": trunk}, audio=CONFIG)).eval()
    with torch.no_grad():
        encoder.stems["audio"].backbone.classifier.weight.normal_(std=1.0)
    return encoder


def tone(length, pitch=440, loudness=0.5):
    return (loudness * np.sin(2 * np.pi * pitch * np.arange(length) / RATE)).astype(np.float32)


def as_integers(sound):
    return (sound * 32767).astype(np.int16)


def write_sound(path, channels, rate):
    """channels (n, channels) of floats as 16-bit WAV."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(as_integers(channels).tobytes())


# reading


def write_tables(folder, clips, classes="name,synonyms,caption\ndog,puppy|hound,a dog barks\nrain,,it rains\n"):
    (folder / "classes.csv").write_text(classes)
    (folder / "clips.csv").write_text(clips)


def test_reads_classes_and_recordings(tmp_path):
    write_tables(
        tmp_path,
        "\ufeffclass,path,group,split\ndog,a/b.wav,rex,train\nrain,c.wav,monday,train\ndog,d.wav,fido,held_out\n",
    )
    sounds, clips = read_sounds(tmp_path)
    assert sounds == [Sound(("dog", "puppy", "hound"), "a dog barks"), Sound(("rain",), "it rains")]
    assert [(clip.path, clip.label, clip.group, clip.held_out) for clip in clips] == [
        (tmp_path / "a/b.wav", 0, "rex", False),
        (tmp_path / "c.wav", 1, "monday", False),
        (tmp_path / "d.wav", 0, "fido", True),
    ]


def test_sentences_name_the_sound_its_synonyms_and_what_is_heard():
    assert Sound(("dog", "puppy"), "a dog barks").sentences() == [
        "the sound of dog",
        "dog, puppy",
        "dog: a dog barks",
    ]


def test_without_a_split_whole_groups_are_held_out(tmp_path):
    rows = [f"{name},{name}{group}-{take}.wav,{name}{group}" for name in ("dog", "rain") for group in range(40)
            for take in range(3)]  # fmt: skip
    write_tables(tmp_path, "class,path,group\n" + "\n".join(rows))
    _, clips = read_sounds(tmp_path)
    sides = {}
    for clip in clips:
        sides.setdefault(clip.group, set()).add(clip.held_out)
    assert all(len(side) == 1 for side in sides.values())
    assert 0.15 < np.mean([side == {True} for side in sides.values()]) < 0.45


@pytest.mark.parametrize(
    "clips, message",
    [
        ("class,path\ndog,a.wav\n", "clips.csv needs the columns class, group, path"),
        ("class,path,group,split\ndog,a.wav,g,train\ncow,b.wav,h,train\n", "the class 'cow', which classes.csv lacks"),
        ("class,path,group,split\ndog,a.wav,g,train\nrain,b.wav,h,held_out\n", "no recording to train on of 'rain'"),
    ],
)
def test_what_is_missing_is_said(tmp_path, clips, message):
    write_tables(tmp_path, clips)
    with pytest.raises(ValueError, match=message):
        read_sounds(tmp_path)


def test_samples_are_the_first_channel_at_16_khz(tmp_path):
    left = tone(4000, pitch=300)  # at half the rate: half a second of 150 Hz
    write_sound(tmp_path / "a.wav", np.stack([left, -0.3 * left], 1), rate=8000)
    samples = load_samples(tmp_path / "a.wav")
    assert samples.dtype == np.int16
    assert len(samples) == 8000
    spectrum = np.abs(np.fft.rfft(samples.astype(float)))
    assert spectrum.argmax() == 75  # lines are 2 Hz apart
    assert np.abs(samples).max() == pytest.approx(0.5 * 32767, rel=0.01)


# changing


@pytest.mark.parametrize("length", [400, 3000, 20000, LONGEST, 90000])
def test_varied_sounds_are_sane(length):
    rng, sound = random.Random(length), as_integers(tone(length))
    found = [varied(sound, rng, LONGEST) for _ in range(40)]
    assert all(0 < len(one) <= LONGEST and np.isfinite(one).all() and np.abs(one).max() <= 1 for one in found)
    assert len({one.tobytes() for one in found}) == 40
    again = random.Random(length)
    assert all(np.array_equal(one, varied(sound, again, LONGEST)) for one in found)


def test_of_a_long_recording_pauses_are_not_taken():
    sound = np.zeros(300_000, np.float32)
    sound[150_000:152_000] = tone(2000)
    rng = random.Random(0)
    for _ in range(30):
        spectrum = np.abs(np.fft.rfft(varied(as_integers(sound), rng, LONGEST)))
        frequencies = np.fft.rfftfreq(2 * (len(spectrum) - 1), 1 / RATE)
        assert spectrum[(frequencies > 300) & (frequencies < 600)].max() > 50


# spectrograms


@pytest.mark.parametrize("length", [400, 559, 560, 12345, LONGEST])
def test_spectrograms_are_those_of_load_audio(length):
    sound = tone(length) + 0.1
    wanted = load_audio(Waveform(torch.from_numpy(sound), RATE), CONFIG)[:1]
    torch.testing.assert_close(spectrograms([sound], CONFIG), wanted, rtol=1e-4, atol=1e-4)


def test_changes_leave_the_padding_alone_and_go_no_lower_than_silence():
    sounds, lowest = [tone(8000), tone(LONGEST)], (SILENCE - CONFIG.mean) / CONFIG.std
    plain, rng = spectrograms(sounds, CONFIG), random.Random(3)
    for _ in range(12):
        changed = spectrograms(sounds, CONFIG, rng)
        assert changed.shape == (2, 1, 128, 204)
        padding = torch.full_like(changed[0, :, :, 48:], PADDING)
        torch.testing.assert_close(changed[0, :, :, 48:], padding)  # 8000 samples are 48 frames
        torch.testing.assert_close(changed[1, :, :, 198:], padding[..., : 204 - 198])
        assert not torch.equal(changed[1, :, :, :198], plain[1, :, :, :198])
        assert changed.min() >= lowest - 1e-4


# batches


def recordings():
    """Classes 0 and 1 of five; class 0 has a large group and a small one."""
    return [
        *[(as_integers(tone(9000 + take, 300)), 0, "large") for take in range(20)],
        (as_integers(tone(5000, 320)), 0, "small"),
        (as_integers(tone(50000, 3000)), 1, "other"),
    ]


def test_batches_have_the_shapes_and_labels():
    planes, targets = Batches(recordings(), CLASSES, CONFIG).sample(24, mixed=0.0)
    assert planes.shape == (24, 1, 128, 204)
    assert targets.shape == (24, CLASSES)
    assert set(targets.sum(0).nonzero()[:, 0].tolist()) == {0, 1}
    assert torch.equal(targets.sum(1), torch.ones(24))
    assert set(targets.unique().tolist()) == {0.0, 1.0}


def test_mixtures_share_the_label():
    _, targets = Batches(recordings(), CLASSES, CONFIG).sample(40, mixed=1.0)
    torch.testing.assert_close(targets.sum(1), torch.ones(40))
    both = targets[(targets[:, 0] > 0) & (targets[:, 1] > 0)]
    assert len(both) > 5
    assert both.max(1).values.min() >= 0.5


def test_rare_classes_and_small_groups_get_their_turn():
    batches = Batches(recordings(), CLASSES, CONFIG)
    labels = [batches.draw()[1] for _ in range(200)]
    assert 30 < labels.count(1) < 90  # one recording of 22
    assert batches.weights[0] / batches.weights[1] == pytest.approx(21**0.3)


# the trunk


def test_the_default_is_a_classifier_with_two_class_tokens():
    config = audio_config(102)
    trunk = config.trunks[Modality.AUDIO]
    assert (trunk.backbone, trunk.backbone_classes, trunk.depth) == ("efficientnet_lite0", 102, 0)
    assert (trunk.num_cls_tokens, trunk.width, config.embedding_dim, config.audio.overlap) == (2, 384, 384, "separate")


def test_a_grey_picture_looks_the_same_to_the_audio_backbone(encoder):
    import timm

    pictures = timm.create_model(BACKBONE, bn_eps=1e-3).eval()
    stem, before = encoder.stems["audio"], encoder.stems["audio"].backbone.classifier.weight.clone()
    start_from_pictures(encoder, pictures.state_dict())
    grey = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        wanted = pictures.forward_features(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(stem.backbone.forward_features(grey), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(stem.backbone.classifier.weight, before)
    with pytest.raises(RuntimeError):
        start_from_pictures(encoder, timm.create_model("test_vit").state_dict() | {"conv_stem.weight": grey})


def test_a_classifier_learns_and_nothing_else_changes(encoder):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    torch.manual_seed(0)
    settings = AudioTraining(steps=30, batch_size=8, rate=3e-3, mixed=0.0, smoothing=0.0)
    losses = []
    for loss in fit_classifier(encoder, Batches(recordings(), CLASSES, CONFIG), settings):
        losses.append(loss)
        encoder.eval()
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    backbone = encoder.stems["audio"].backbone
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    changed = {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[2] for name in changed} == {"backbone"}
    assert {f"stems.audio.backbone.{name}" for name, _ in backbone.named_parameters()} <= changed
    assert "stems.audio.backbone.bn1.running_mean" in changed


def test_class_tokens_are_embeddings_weighted_by_probability(encoder):
    classes, captions = (F.normalize(torch.randn(CLASSES, WIDTH), dim=-1) for _ in range(2))
    solve_audio(encoder, classes, captions)
    clips = torch.randn(4, 3, 1, 128, 204)
    features, probabilities = hear(encoder, list(clips), batch_size=3)
    assert features.shape == (4, 2, WIDTH)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
    expected = F.normalize(encoder({"audio": clips})["audio"], dim=-1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    single, believed = hear(encoder, [clips[0, :1]])
    tokens = torch.stack([believed[0] @ classes, believed[0] @ captions])
    torch.testing.assert_close(single[0], F.normalize(F.layer_norm(tokens, [WIDTH], eps=1e-6), dim=-1))
