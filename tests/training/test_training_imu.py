"""The IMU trunk: what recordings are varied by, and that a tiny trunk learns to tell motions it was not shown."""

import math
import random

import numpy
import pytest
import torch
from torch.nn import functional as F

from adapter_llm.train_imu import (
    Recording,
    Variation,
    gravity,
    imu_config,
    imu_features,
    nearest_label,
    read_folder,
    rotation,
    train_imu,
    varied,
)
from imagebind_encoder import EncoderConfig, ImageBindEncoder, ImuConfig, MediaError, Modality
from imagebind_encoder.media.imu import Motion, load_imu
from imagebind_encoder.media.windows import Windows

STILL = Variation(tilt=0, anyhow=0, mirror=0, speed=0, scale=0, gravity=0, noise=0, shortest=1)
RATE = 16


def swing(frequency, seconds=7, phase=0.0, strength=3.0):
    """A wrist that swings about its x axis."""
    at = torch.arange(seconds * RATE, dtype=torch.float64) / RATE
    wave = torch.sin(2 * math.pi * frequency * at + phase)
    quiet = torch.randn(6, len(at), dtype=torch.float64) * 0.05
    quiet[1] += strength * wave
    quiet[3] += strength / 2 * wave
    return Motion(quiet, RATE)


@pytest.fixture
def motion():
    return Motion(torch.randn(6, 9 * RATE, dtype=torch.float64), RATE)


# variation


def test_rotations_turn():
    turns = torch.randn(7, 3, dtype=torch.float64)
    matrices = rotation(turns)
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(3, dtype=torch.float64).expand(7, 3, 3))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(matrices @ turns[..., None], turns[..., None])  # the axis stays
    quarter = rotation(torch.tensor([0, 0, math.pi / 2]))
    torch.testing.assert_close(quarter, torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))
    assert torch.equal(rotation(torch.zeros(3)), torch.eye(3))


def test_gravity_turns_against_the_gyroscope():
    """Half a turn about z in two seconds: what pointed along x points along -x at the end."""
    turning = torch.zeros(3, 2 * RATE + 1, dtype=torch.float64)
    turning[2] = math.pi / 2
    felt = gravity(turning, RATE, torch.tensor([1.0, 0, 0], dtype=torch.float64)) / 9.80665
    torch.testing.assert_close(felt.norm(dim=0), torch.ones(2 * RATE + 1, dtype=torch.float64))
    torch.testing.assert_close(felt[:, RATE], torch.tensor([0.0, -1, 0], dtype=torch.float64))
    torch.testing.assert_close(felt[:, -1], torch.tensor([-1.0, 0, 0], dtype=torch.float64))


def test_without_variation_a_cut_is_a_cut(motion):
    found = varied(motion, 5.0, random.Random(0), STILL)
    length = found.samples.shape[1]
    assert 5 * RATE <= length <= 6.5 * RATE + 1
    assert found.rate == RATE
    windows = motion.samples.unfold(1, length, 1)
    assert (windows == found.samples[:, None]).all(dim=2).all(dim=0).any()


def test_a_short_recording_is_taken_whole():
    short = Motion(torch.randn(6, 11, dtype=torch.float64), RATE)
    assert torch.equal(varied(short, 5.0, random.Random(0), STILL).samples, short.samples)


@pytest.mark.parametrize("name", ["tilt", "anyhow", "mirror", "speed", "scale", "gravity", "noise", "shortest"])
def test_each_variation_does_its_part(motion, name):
    value = {"shortest": 0.4, "tilt": 0.5}.get(name, 1.0)
    how = Variation(**{**vars(STILL), name: value})
    kinds = [varied(motion, 5.0, random.Random(seed), how) for seed in range(12)]
    cuts = [varied(motion, 5.0, random.Random(seed), STILL) for seed in range(12)]
    lengths = [kind.samples.shape[1] for kind in kinds]
    if name in ("speed", "shortest"):
        assert (min(lengths) < 5 * RATE) or name == "speed"
        assert (len({kind.rate for kind in kinds}) > 9) == (name == "speed")
        return
    for kind, cut in zip(kinds, cuts, strict=True):
        one, other = (part.samples.view(2, 3, -1) for part in (kind, cut))
        assert kind.samples.shape == cut.samples.shape
        assert not torch.allclose(one, other)
        if name in ("tilt", "anyhow", "mirror"):  # lengths and angles between the sensors' own samples stay
            torch.testing.assert_close(one.norm(dim=1), other.norm(dim=1))
        if name == "mirror":
            signs = torch.tensor([[-1.0, 1, 1], [1, -1, -1]]).double()  # turning is no vector but a sense
            torch.testing.assert_close(one, other * signs[..., None])
        if name == "gravity":
            assert torch.equal(one[1], other[1])
            felt = (one - other)[0]
            torch.testing.assert_close(felt, gravity(one[1], RATE, felt[:, 0] / 9.80665))
        if name == "scale":
            ratio = one / other
            torch.testing.assert_close(ratio.std(dim=(1, 2)), torch.zeros(2).double(), atol=1e-9, rtol=0)


def test_variation_repeats_itself(motion):
    one, same, another = (varied(motion, 5.0, random.Random(seed)).samples for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert one.shape != another.shape or not torch.equal(one, another)


# files


def test_a_folder_of_recordings(tmp_path, motion):
    header = "time_ms,gx,gy,gz,ax (g),ay (g),az (g)\n"
    for label, name in (("walking", "a.csv"), ("walking", "b.CSV"), ("resting", "c.csv")):
        (tmp_path / label).mkdir(exist_ok=True)
        at = numpy.arange(9 * RATE) * 1000 / RATE
        rows = zip(at, *motion.samples[3:], *motion.samples[:3] / 9.80665, strict=True)
        (tmp_path / label / name).write_text(header + "\n".join(",".join(map(str, map(float, row))) for row in rows))
    (tmp_path / "notes.txt").write_text("not a recording")
    (tmp_path / "walking" / "photo.jpg").write_bytes(b"")
    config = ImuConfig(centre=True)
    found = read_folder(tmp_path, config, rate=RATE)
    assert [(one.label, one.name) for one in found] == [("resting", "c"), ("walking", "a"), ("walking", "b")]
    for one in found:
        assert one.motion.samples.shape == (6, 8 * RATE)  # whole seconds
        torch.testing.assert_close(
            load_imu(one.motion, config, 80), load_imu(motion, config, 80), rtol=1e-4, atol=1e-4
        )  # fmt: skip
    (tmp_path / "walking" / "d.csv").write_text("nothing")
    with pytest.raises(MediaError, match=r"d\.csv"):
        read_folder(tmp_path, config)
    with pytest.raises(ValueError, match="LABEL/RECORDING"):
        read_folder(tmp_path / "nowhere", config)


# training


def test_the_config_is_an_imu_trunk_with_two_class_tokens():
    config = imu_config()
    trunk = config.trunks[Modality.IMU]
    assert config.modalities == (Modality.IMU,)
    assert (config.embedding_dim, trunk.num_cls_tokens, trunk.stem.channels, trunk.stem.norm) == (384, 2, 6, False)
    assert config.imu.centre
    assert EncoderConfig.from_dict(config.to_dict()) == config
    keys = {".".join(key.split(".")[:2]) for key in ImageBindEncoder(config).state_dict()}
    assert keys == {"stems.imu", "trunks.imu", "heads.imu", "postprocessors.imu"}


def test_a_tiny_trunk_learns_to_tell_motions():
    sentences = dict(zip(("slow", "fast", "rest"), F.normalize(torch.randn(3, 384), dim=-1), strict=True))

    def recordings(seed):
        torch.manual_seed(seed)
        made = {"slow": swing(0.8, phase=seed), "fast": swing(2.5, phase=seed), "rest": swing(1, strength=0.0)}
        return [Recording(motion, label) for label, motion in made.items()]

    torch.manual_seed(0)
    encoder = ImageBindEncoder(imu_config(width=24, depth=1, heads=2, samples=60))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    seen = [*recordings(1), *recordings(2)]
    losses = train_imu(encoder, seen, sentences, steps=45, batch_size=9, learning_rate=5e-3)
    assert len(losses) == 45
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert not encoder.training
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert set(before) - changed == {"postprocessors.imu.log_scale"}
    for recording in recordings(7):  # never seen
        features = imu_features(encoder, recording.motion)
        assert features.shape == (2, 2, 384)
        assert nearest_label(features, sentences) == [recording.label] * 2
        assert imu_features(encoder, recording.motion, Windows(2.0, 1.0)).shape == (6, 2, 384)


def test_training_repeats_itself_and_wants_a_sentence_for_each_label():
    recordings = [Recording(swing(1), "slow"), Recording(swing(3), "fast")]
    sentences = {"slow": torch.randn(384), "fast": torch.randn(384), "other": torch.randn(384)}
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        encoder = ImageBindEncoder(imu_config(width=12, depth=1, heads=2, samples=30))
        losses.append(train_imu(encoder, recordings, sentences, steps=3, batch_size=4, seed=5))
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="no sentence for fast; "):
        train_imu(encoder, recordings, {"slow": torch.randn(384)})


def test_the_nearest_label_is_that_of_the_mean_token():
    sentences = {"a": torch.tensor([1.0, 0]), "b": torch.tensor([0, 2.0])}
    features = torch.tensor([[[9.0, 1.0], [0, 1.0]], [[9.0, 1.0], [1.0, 0.3]]])
    assert nearest_label(features, sentences) == ["b", "a"]
