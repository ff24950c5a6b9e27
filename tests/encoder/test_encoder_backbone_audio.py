"""The stem around a frozen classifier of sounds: a spectrogram is its picture, of one channel and half as wide."""

import pytest
import torch
from torch.nn import functional as F

from imagebind_encoder import EncoderConfig, ImageBindEncoder, PatchStemConfig, TrunkConfig
from imagebind_encoder.backbone import TEMPERATURE, BackboneStem
from imagebind_encoder.schema import ConfigError

BACKBONE = "test_efficientnet"  # timm's own, made for tests: 256 channels, 1000 classes
CHANNELS, CLASSES, WIDTH, EMBEDDING = 256, 7, 24, 20
STEM = PatchStemConfig(channels=1, size=(96, 140), kernel=(16, 16), stride=(10, 10))
PLACES = 3 * 3  # 96 rows and 70 pairs of columns, in strides of 32


def build(depth=0, tokens=3):
    """An encoder with random weights that says different things of sounds."""
    trunk = TrunkConfig(WIDTH, depth, 3, num_cls_tokens=tokens, backbone=BACKBONE, backbone_classes=CLASSES, stem=STEM)
    encoder = ImageBindEncoder(EncoderConfig(EMBEDDING, {"audio": trunk}))
    if not encoder.stems["audio"].summary.weight.is_meta:
        with torch.no_grad():
            encoder.stems["audio"].backbone.classifier.weight.normal_(std=1.0)
    return encoder.eval()


def spectrograms(*shape):
    return torch.randn(*shape, 1, *STEM.size)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("depth", [0, 1])
def test_shapes(depth, tokens):
    stages = build(depth, tokens).stages("audio", spectrograms(2))
    assert stages.stem_tokens.shape == stages.trunk_tokens.shape == (2, tokens + PLACES * depth, WIDTH)
    assert stages.embedding.shape == (2, tokens, EMBEDDING)


def test_the_backbone_has_one_channel_and_the_classes_of_the_config():
    stem = build().stems["audio"]
    assert stem.backbone.conv_stem.weight.shape[1] == 1
    assert stem.backbone.classifier.weight.shape == (CLASSES, CHANNELS)
    assert stem.summary.weight.shape == (3 * WIDTH, CHANNELS + CLASSES)


def test_frames_are_averaged_in_pairs():
    stem, plane = build().stems["audio"], spectrograms(2)
    pairs = plane.unflatten(-1, (-1, 2))
    wanted = stem.backbone.forward_features(pairs.mean(-1))
    torch.testing.assert_close(stem.maps(plane), wanted)
    torch.testing.assert_close(stem.maps(pairs.flip(-1).flatten(-2)), wanted)
    assert not torch.allclose(stem.maps(plane.flip(-2)), wanted)


def test_class_tokens_are_a_map_of_features_and_probabilities():
    stem, plane = build().stems["audio"], spectrograms(2)
    pooled = stem.backbone.forward_features(F.avg_pool2d(plane, (1, 2))).mean((2, 3))
    probabilities = torch.softmax(stem.backbone.classifier(pooled) / TEMPERATURE, dim=-1)
    tokens = stem.summary(torch.cat([pooled, probabilities], dim=-1)).unflatten(-1, (3, WIDTH))
    torch.testing.assert_close(stem(plane).tokens, tokens)


def test_pictures_are_not_averaged():
    trunk = TrunkConfig(WIDTH, 0, 3, backbone=BACKBONE)
    stem = ImageBindEncoder(EncoderConfig(EMBEDDING, {"vision": trunk})).eval().stems["vision"]
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(stem.maps(images), stem.backbone.forward_features(images))
    assert stem.backbone.num_classes == 1000  # as published


@pytest.mark.parametrize("depth", [0, 1])
def test_clips_are_embedded_one_by_one_and_averaged(depth):
    encoder, clips = build(depth), spectrograms(2, 5)
    together = encoder({"audio": clips})["audio"]
    alone = torch.stack([encoder({"audio": clips[:, number]})["audio"] for number in range(5)])
    torch.testing.assert_close(together, alone.mean(0), rtol=1e-4, atol=1e-4)


def test_stays_frozen_in_training():
    encoder = build().train()
    backbone = encoder.stems["audio"].backbone
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert encoder.stems["audio"].summary.weight.requires_grad


def test_meta_construction_takes_a_state_dict():
    with torch.device("meta"):
        hollow = build(1)
    whole, plane = build(1), spectrograms(1)
    hollow.load_state_dict(whole.state_dict(), assign=True)
    assert torch.equal(hollow.eval()({"audio": plane})["audio"], whole({"audio": plane})["audio"])


def test_config_survives_its_dict_and_refuses_nonsense():
    config = build().config
    assert EncoderConfig.from_dict(config.to_dict()) == config
    assert config.trunks["audio"].backbone_classes == CLASSES
    assert isinstance(build().stems["audio"], BackboneStem)
    for wrong in (0, -3, 2.5, True):
        with pytest.raises(ConfigError, match="backbone_classes"):
            TrunkConfig(WIDTH, 0, 3, backbone=BACKBONE, backbone_classes=wrong)
