"""The default encoder's arithmetic: ridge, ConSE, predictions out of fold, imagined features, random cuts."""

import random

import folders
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from adapter_llm.train_encoder import (
    RIDGE,
    balance,
    finish,
    imagine,
    nearest,
    pool_photos,
    ridge,
    solve_vision,
    varied,
    vision_config,
)
from imagebind_encoder import EncoderConfig, ImageBindEncoder, ImageConfig, Modality, TrunkConfig
from imagebind_encoder.media.image import load_image

CHANNELS, CLASSES, WIDTH = 256, 1000, 20
VIEWS, PHOTOS = 3, 23


@pytest.fixture
def encoder():
    """The default's shape, small, with a random classifier."""
    trunk = TrunkConfig(WIDTH, 0, 1, num_cls_tokens=2, backbone="test_efficientnet")
    config = EncoderConfig(WIDTH, {"vision": trunk}, ImageConfig(size=64, mean=(0.5,) * 3, std=(0.5,) * 3))
    encoder = ImageBindEncoder(config).eval()
    with torch.no_grad():
        encoder.stems["vision"].backbone.classifier.weight.normal_(std=0.5)
    return encoder


@pytest.fixture
def classes():
    return F.normalize(torch.randn(CLASSES, WIDTH), dim=-1)


def pooled_features(*shape):
    """Like those of a network that ends in ReLU6: never below 0."""
    return torch.randn(*shape, CHANNELS).clamp(min=0)


def test_the_default_encoder_is_a_classifier_with_two_class_tokens():
    config = vision_config()
    trunk = config.trunks[Modality.VISION]
    assert (trunk.backbone, trunk.depth, trunk.num_cls_tokens, trunk.width) == ("efficientnet_lite2", 0, 2, 384)
    assert (config.embedding_dim, config.image.size, config.image.mean, config.image.std) == (
        384,
        260,
        (0.5,) * 3,
        (0.5,) * 3,
    )


# ridge


@pytest.mark.parametrize("rows, columns", [(9, 30), (40, 6)])
@pytest.mark.parametrize("strength", [0.01, RIDGE])
def test_ridge_is_the_primal_closed_form(rows, columns, strength):
    """(X'X + s I)^-1 X'Y of centred X and Y, s = strength times the mean squared length of a centred row."""
    inputs, targets = torch.randn(rows, columns).double() + 1, torch.randn(rows, 4).double() - 2
    with torch.device("cpu"):
        weight, bias = ridge(inputs, targets, strength)
    centred, wanted = inputs - inputs.mean(0), targets - targets.mean(0)
    penalty = strength * centred.square().sum(1).mean()
    expected = torch.linalg.solve(centred.T @ centred + penalty * torch.eye(columns).double(), centred.T @ wanted).T
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(inputs.mean(0) @ weight.T + bias, targets.mean(0))  # the bias is not shrunk


def test_a_weak_ridge_recovers_a_line_and_a_strong_one_the_mean():
    inputs, true = torch.randn(50, 5), torch.randn(3, 5)
    targets = inputs @ true.T + 7
    weight, bias = ridge(inputs, targets, 1e-7)
    torch.testing.assert_close(weight, true, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(bias, torch.full((3,), 7.0), rtol=1e-3, atol=1e-3)
    weight, bias = ridge(inputs, targets, 1e9)
    assert weight.abs().max() < 1e-4
    torch.testing.assert_close(bias, targets.mean(0), rtol=1e-4, atol=1e-3)


def test_balance_gives_both_parts_the_same_say():
    evidence = torch.cat([torch.randn(30, 4) * 100 + 5, torch.rand(30, 7) / 1000], dim=1)
    factors = balance(evidence, 4)
    assert len(factors[:4].unique()) == len(factors[4:].unique()) == 1
    scaled = (evidence - evidence.mean(0)) * factors
    for part in (scaled[:, :4], scaled[:, 4:]):
        assert float(part.square().sum(1).mean()) == pytest.approx(1, rel=1e-5)


# solving the class tokens


def test_token_0_is_conse_and_the_head_the_identity(encoder, classes):
    pooled = pooled_features(VIEWS, PHOTOS)
    features = solve_vision(encoder, classes, pooled, torch.randn(PHOTOS, WIDTH))
    assert features.shape == (VIEWS, PHOTOS, 2, WIDTH)
    probabilities = torch.softmax(encoder.stems["vision"].backbone.classifier(pooled).double() / 0.6, -1)
    mean = probabilities @ classes.double()
    law = F.normalize(mean - mean.mean(-1, keepdim=True), dim=-1)  # LayerNorm takes the mean away
    assert (features[:, :, 0].double() - law).abs().max() < 5e-6
    assert torch.equal(encoder.heads["vision"].projection.weight, torch.eye(WIDTH))


def test_token_1_is_the_balanced_ridge_over_every_photo(encoder, classes):
    pooled, captions = pooled_features(VIEWS, PHOTOS), torch.randn(PHOTOS, WIDTH)
    solve_vision(encoder, classes, pooled, captions)
    stem = encoder.stems["vision"]
    with torch.inference_mode():
        evidence = stem.evidence(pooled)
        factors = balance(evidence[0], CHANNELS)
        inputs = (evidence * factors).reshape(-1, CHANNELS + CLASSES)
        weight, bias = ridge(inputs.double(), captions.repeat(VIEWS, 1).double())
        expected = inputs.double() @ weight.T + bias
        tokens = stem.summarise(pooled.flatten(0, 1))[:, 1]
    torch.testing.assert_close(tokens.double(), expected, rtol=1e-3, atol=1e-4)


def test_features_are_out_of_fold(encoder, classes):
    """A photo's own captions have no say in its feature: only so does training meet the errors of new photos."""
    pooled, captions = pooled_features(VIEWS, PHOTOS), torch.randn(PHOTOS, WIDTH)
    before = solve_vision(encoder, classes, pooled, captions)
    changed = captions.clone()
    changed[7] = -5 * captions[7]
    after = solve_vision(encoder, classes, pooled, changed)
    moved = (after - before).abs().amax((0, 2, 3)) > 1e-4
    same_fold = torch.arange(PHOTOS) % 5 == 7 % 5
    assert torch.equal(moved, ~same_fold)  # all those whose regression saw photo 7, in any view, and no other
    assert torch.equal(after[:, same_fold], before[:, same_fold])
    assert torch.equal(after[:, :, 0], before[:, :, 0])
    with torch.inference_mode():  # what is kept in the encoder has seen everything, and moved
        kept = finish(encoder, encoder.stems["vision"].summarise(pooled[0]))
    assert (kept[7] - after[0, 7]).abs().max() > 1e-3


def test_features_out_of_fold_are_worse_than_in_sample_and_better_than_chance(encoder, classes):
    pooled = pooled_features(VIEWS, 200) * 0.1 + pooled_features(1, 200)  # views of a photo are alike
    with torch.no_grad():
        encoder.stems["vision"].backbone.classifier.weight.mul_(0.01)
    captions = F.normalize(pooled[0] @ torch.randn(CHANNELS, WIDTH), dim=-1)
    captions -= captions.mean(1, keepdim=True)
    fresh = solve_vision(encoder, classes, pooled, captions)[0, :, 1]
    with torch.inference_mode():
        kept = finish(encoder, encoder.stems["vision"].summarise(pooled[0]))[:, 1]
    fit = [float(F.cosine_similarity(found, captions, dim=-1).mean()) for found in (fresh, kept)]
    assert 0.1 < fit[0] < fit[1] - 0.05


# imagined features


def test_imagined_features_are_of_the_class_they_are_said_to_be(encoder, classes):
    """Most reach the wanted one of a random classifier's 1000; the label is what was reached, always."""
    stem, per_class = encoder.stems["vision"], 3
    labels = torch.randint(CLASSES, (60,))
    with torch.inference_mode():  # photos the classifier is fairly sure of: its rows say what it looks for
        pooled = (pooled_features(60) + 0.7 * stem.backbone.classifier.weight[labels]).clamp(min=0)
        labels = stem.backbone.classifier(pooled).argmax(-1)
    solve_vision(encoder, classes, pooled[None], torch.randn(60, WIDTH))
    moved = []
    summarise = stem.summarise
    stem.summarise = lambda given: moved.append(given) or summarise(given)
    features, believed = imagine(encoder, pooled, labels, classes, per_class)
    del stem.summarise
    assert features.shape == (CLASSES, per_class, 2, WIDTH)
    assert believed.shape == (CLASSES, per_class)
    moved = torch.stack(moved)
    with torch.inference_mode():
        assert torch.equal(stem.backbone.classifier(moved).argmax(-1), believed)
        torch.testing.assert_close(finish(encoder, stem.summarise(moved[5])), features[5])
    assert moved.min() >= 0  # still what comes out of a ReLU
    reached = float((believed == torch.arange(CLASSES)[:, None]).float().mean())
    assert 0.6 < reached < 1
    donors = (moved[:, :, None] - pooled).square().mean(-1).amin(-1)
    assert donors.mean() < 0.5 * (pooled[:, None] - pooled).square().mean()  # a photo is still in it


def test_a_photo_of_the_wanted_class_is_left_as_it_is(encoder, classes):
    pooled = pooled_features(1)
    with torch.inference_mode():
        label = encoder.stems["vision"].backbone.classifier(pooled).argmax(-1)
    features, believed = imagine(encoder, pooled, label, classes, 2)
    with torch.inference_mode():
        own = finish(encoder, encoder.stems["vision"].summarise(pooled))[0]
    torch.testing.assert_close(features[int(label)], own.expand(2, -1, -1))
    assert believed[int(label)].tolist() == [int(label)] * 2


def test_imagining_repeats_itself(encoder, classes):
    pooled, labels = pooled_features(10), torch.arange(10)
    one, other, third = (imagine(encoder, pooled, labels, classes, 2, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_nearest_are_the_most_similar_others():
    embeddings = torch.randn(30, 8) * torch.rand(30, 1)
    found = nearest(embeddings, 5)
    assert found.shape == (30, 5)
    for row, others in enumerate(found.tolist()):
        similarity = F.cosine_similarity(embeddings[row], embeddings, dim=-1)
        expected = [n for n in similarity.argsort(descending=True).tolist() if n != row][:5]
        assert others == expected
    assert row not in nearest(torch.cat([embeddings, embeddings]), 3)[row]  # not even beside a twin
    assert nearest(torch.cat([embeddings, embeddings]), 1)[3].item() == 33


# pictures


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (100, 100)])
def test_a_cut_keeps_at_least_the_share(size):
    """Of pictures up to 4 to 3; a longer one may lose more, because a cut is never longer than 1.27 to 1."""
    image = Image.new("RGB", size)
    shares = [
        cut.width * cut.height / (size[0] * size[1]) for cut in (varied(image, random.Random(n)) for n in range(300))
    ]
    assert min(shares) > 0.55 - 0.01
    assert max(shares) > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (500, 20), (3, 2)])
def test_any_picture_can_be_cut(size):
    for seed in range(50):
        cut = varied(Image.new("RGB", size), random.Random(seed))
        assert 1 <= cut.width <= size[0]
        assert 1 <= cut.height <= size[1]


def test_cuts_differ_and_repeat():
    image = folders.picture(1, 120, 90)
    one, same, other = (varied(image, random.Random(seed)) for seed in (1, 1, 2))
    assert one.tobytes() == same.tobytes()
    assert (one.size, one.tobytes()) != (other.size, other.tobytes())
    rng = random.Random(0)
    assert len({varied(image, rng).size for _ in range(10)}) > 5


def test_view_0_is_the_photo_as_it_is(encoder, tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for n, path in enumerate(paths):
        folders.picture(n, 80, 60).save(path)
    with torch.no_grad():  # a network of fresh weights says nearly the same of everything
        for parameter in encoder.stems["vision"].backbone.parameters():
            parameter.mul_(2.0)
    pooled = pool_photos(encoder, paths, views=3)
    assert pooled.shape == (3, 3, CHANNELS)
    images = torch.stack([load_image(path, encoder.config.image) for path in paths])
    with torch.inference_mode():
        torch.testing.assert_close(pooled[0], encoder.stems["vision"].pool(images))
    assert not torch.equal(pooled[1], pooled[0])
    assert not torch.equal(pooled[1], pooled[2])
    assert torch.equal(pool_photos(encoder, paths, views=3), pooled)
