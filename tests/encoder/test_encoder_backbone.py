"""The stem around a frozen classifier: shapes, what stays frozen, and the law its class tokens obey."""

import pytest
import torch
from torch.nn import functional as F

from imagebind_encoder import EncoderConfig, ImageBindEncoder, ImageConfig, TrunkConfig
from imagebind_encoder.backbone import BATCH_NORM_EPS, TEMPERATURE, BackboneStem
from imagebind_encoder.schema import ConfigError

BACKBONE = "test_efficientnet"  # timm's own, made for tests: 256 channels, 1000 classes
CHANNELS, CLASSES = 256, 1000
SIZE, PLACES = 70, 9  # 70 pixels are three strides of 32, the last one not full
WIDTH, HEADS = 24, 3


def build(depth, tokens=3, embedding_dim=20, **changes):
    """An encoder with random weights, a random classifier's among them, that says different things of pictures."""
    trunk = TrunkConfig(WIDTH, depth, HEADS, num_cls_tokens=tokens, backbone=BACKBONE)
    encoder = ImageBindEncoder(EncoderConfig(embedding_dim, {"vision": trunk}, ImageConfig(size=SIZE)), **changes)
    stem = encoder.stems["vision"]
    if not stem.summary.weight.is_meta:
        with torch.no_grad():
            stem.backbone.classifier.weight.normal_(std=1.0)
            stem.backbone.classifier.bias.normal_(std=0.5)
    return encoder.eval()


def pictures(count):
    return torch.randn(count, 3, SIZE, SIZE)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("depth", [0, 1])
def test_shapes(depth, tokens):
    encoder = build(depth, tokens)
    stages = encoder.stages("vision", pictures(2))
    assert stages.stem_tokens.shape == stages.trunk_tokens.shape == (2, tokens + PLACES * depth, WIDTH)
    assert stages.embedding.shape == (2, tokens, 20)
    torch.testing.assert_close(stages.embedding.norm(dim=-1), torch.ones(2, tokens))


def test_pool_evidence_and_summary_are_the_steps_of_forward():
    stem, images = build(0).stems["vision"], pictures(2)
    pooled = stem.pool(images)
    assert pooled.shape == (2, CHANNELS)
    assert stem.evidence(pooled).shape == (2, CHANNELS + CLASSES)
    assert torch.equal(stem.summarise(pooled), stem(images).tokens)


def test_keys_are_exact():
    backbone = {f"backbone.{key}" for key in build(0).stems["vision"].backbone.state_dict()}
    own = {"summary.weight", "summary.bias"}
    assert set(build(0).stems["vision"].state_dict()) == backbone | own
    places = {"projection.weight", "projection.bias", "position"}
    assert set(build(1).stems["vision"].state_dict()) == backbone | own | places
    rest = {key for key in build(0).state_dict() if not key.startswith("stems.")}
    assert rest == {
        "trunks.vision.pre_norm.weight", "trunks.vision.pre_norm.bias", "heads.vision.norm.weight",
        "heads.vision.norm.bias", "heads.vision.projection.weight",
    }  # fmt: skip


def test_batch_norm_has_the_epsilon_of_the_published_weights():
    norms = [m for m in build(0).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert {norm.eps for norm in norms} == {BATCH_NORM_EPS} == {1e-3}


@pytest.mark.parametrize("depth", [0, 1])
def test_meta_construction_takes_a_state_dict(depth):
    with torch.device("meta"):
        hollow = build(depth)
    assert all(tensor.is_meta for tensor in hollow.state_dict().values())
    whole, images = build(depth), pictures(1)
    hollow.load_state_dict(whole.state_dict(), assign=True)
    assert torch.equal(hollow.eval()({"vision": images})["vision"], whole({"vision": images})["vision"])


@pytest.mark.parametrize("depth", [0, 1])
def test_the_backbone_stays_as_it_is_in_training(depth):
    encoder = build(depth).train()
    stem = encoder.stems["vision"]
    assert stem.training and stem.summary.training
    assert not any(module.training for module in stem.backbone.modules())
    before = {key: value.clone() for key, value in stem.backbone.state_dict().items()}
    encoder({"vision": pictures(3)})["vision"][..., 0].sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in stem.backbone.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in stem.backbone.parameters())
    trained = [p for name, p in encoder.named_parameters() if ".backbone." not in name]
    assert all(p.grad is not None for p in trained)


def test_training_mode_computes_the_same():
    encoder, images = build(1), pictures(3)
    expected = encoder({"vision": images})["vision"]
    assert torch.equal(encoder.train()({"vision": images})["vision"], expected)


def test_evidence_is_what_was_felt_and_the_sharpened_probabilities():
    """Labels were smoothed in the classifier's training; a temperature below 1 takes that back."""
    stem = build(0).stems["vision"]
    pooled = torch.rand(4, CHANNELS) / 10
    logits = stem.backbone.classifier(pooled).double()
    powers = (logits - logits.amax(1, keepdim=True)).exp() ** (1 / 0.6)
    evidence = stem.evidence(pooled)
    assert TEMPERATURE == 0.6
    assert torch.equal(evidence[:, :CHANNELS], pooled)
    torch.testing.assert_close(
        evidence[:, CHANNELS:].double(), powers / powers.sum(1, keepdim=True), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("centred", [False, True])
def test_class_tokens_of_class_embeddings_are_conse(centred):
    """Token 0 = direction of m - mean(m), for m = sum over classes of probability times class embedding.

    The two LayerNorms on the way take the mean over the width and then only scale, so embeddings that have
    mean 0 keep the direction of m itself. float32 rounding is all that may differ: 2e-6 in a unit vector.
    """
    encoder = build(0, tokens=2, embedding_dim=WIDTH)
    stem = encoder.stems["vision"]
    classes = torch.randn(CLASSES, WIDTH) + 0.3
    if centred:
        classes -= classes.mean(1, keepdim=True)
    classes = F.normalize(classes, dim=-1)
    with torch.no_grad():
        stem.summary.weight.zero_()
        stem.summary.bias.zero_()
        stem.summary.weight[:WIDTH, CHANNELS:] = classes.T
        encoder.heads["vision"].projection.weight.copy_(torch.eye(WIDTH))
    images = pictures(5)
    logits = stem.backbone.classifier(stem.backbone.forward_features(images).mean((2, 3)))
    mean = torch.softmax(logits.double() / 0.6, -1) @ classes.double()
    law = F.normalize(mean if centred else mean - mean.mean(1, keepdim=True), dim=-1)
    token = encoder({"vision": images})["vision"][:, 0].double()
    assert (token - law).abs().max() < 2e-6
    assert (law[0] - law[1]).abs().max() > 1e-3  # pictures differ, so the law says something


@pytest.mark.parametrize("depth", [0, 1])
def test_a_video_is_the_mean_of_its_frames(depth):
    encoder, images = build(depth), pictures(2)
    stem = encoder.stems["vision"]
    still = torch.stack([images, images], dim=2)  # (B, 3, T, H, W)
    torch.testing.assert_close(stem(still).tokens, stem(images).tokens, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        encoder({"vision": still[:, None]})["vision"], encoder({"vision": images})["vision"], rtol=1e-5, atol=1e-6
    )
    moving = torch.stack([images, images.flip(0)], dim=2)
    maps = stem.backbone.forward_features(images)
    torch.testing.assert_close(
        stem(moving).tokens[:, :3], stem.summarise(maps.mean((0, 2, 3)).expand(2, -1)), rtol=1e-5, atol=1e-6
    )
    assert not torch.allclose(stem(moving).tokens, stem(still).tokens, atol=1e-4)


def test_batch_is_single():
    encoder, images = build(1), pictures(3)
    singles = torch.cat([encoder({"vision": image[None]})["vision"] for image in images])
    torch.testing.assert_close(encoder({"vision": images})["vision"], singles, rtol=1e-5, atol=1e-5)


def test_without_a_backbone_a_trunk_needs_blocks():
    with pytest.raises(ConfigError, match="depth"):
        TrunkConfig(WIDTH, 0, HEADS)
    with pytest.raises(ConfigError, match="at least 0"):
        TrunkConfig(WIDTH, -1, HEADS, backbone=BACKBONE)


def test_only_vision_can_have_a_backbone():
    with pytest.raises(ConfigError, match="only vision and audio trunks can have a backbone"):
        EncoderConfig(20, {"depth": TrunkConfig(WIDTH, 0, HEADS, backbone=BACKBONE)})


def test_config_survives_its_dict():
    config = build(0).config
    assert EncoderConfig.from_dict(config.to_dict()) == config
    assert isinstance(build(0).stems["vision"], BackboneStem)
