"""Point clouds: sampling, grouping, the group encoder and the trunk, against plain loops and for any weights."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from imagebind_encoder import EncoderConfig, ImageBindEncoder, PointStemConfig, TrunkConfig
from imagebind_encoder.point import GroupEncoder, group_points, sample_centers

STEM = PointStemConfig(groups=6, group_size=5, channels=11, output_width=13, start=2, points=19)
TRUNK = TrunkConfig(24, 2, 3, stem=STEM)


def build(num_cls_tokens=1, **stem):
    torch.manual_seed(5)
    trunk = replace(TRUNK, num_cls_tokens=num_cls_tokens, stem=replace(STEM, **stem))
    encoder = ImageBindEncoder(EncoderConfig(14, {"point": trunk})).eval()
    with torch.no_grad():  # as far from a fresh model as a trained one
        for name, tensor in encoder.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.2, 2.0)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.3)
    return encoder


def clouds(batch=2, points=19):
    return torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(7))


def naive_centers(points, count, start):
    """Indices by the definition: the next centre is the first of the points whose nearest centre is farthest."""
    chosen = [start]
    while len(chosen) < count:
        nearest = [min(math.dist(point, points[center]) for center in chosen) for point in points]
        chosen.append(nearest.index(max(nearest)))
    return chosen


def test_sampling_equals_plain_loops():
    points = clouds(3).double()
    indices, distances = sample_centers(points, 7, start=4)
    assert indices.tolist() == [naive_centers(cloud.tolist(), 7, 4) for cloud in points]
    centers = points[torch.arange(3)[:, None], indices]
    torch.testing.assert_close(distances, torch.cdist(centers, points).square(), rtol=0, atol=1e-12)


def test_sampling_takes_the_first_of_several():
    square = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0]]])
    assert sample_centers(square, 4, start=0)[0].tolist() == [[0, 3, 1, 2]]
    assert sample_centers(torch.ones(1, 3, 3), 3, start=1)[0].tolist() == [[1, 0, 0]]


def test_groups_are_the_nearest_points_around_each_centre():
    points = clouds()
    centers, groups = group_points(points, STEM)
    indices, _ = sample_centers(points, STEM.groups, STEM.start)
    for cloud, chosen, its_centers, its_groups in zip(points, indices, centers, groups, strict=True):
        assert torch.equal(its_centers, cloud[chosen])
        for center, group in zip(its_centers, its_groups, strict=True):
            offsets = sorted((cloud - center).tolist(), key=lambda offset: sum(x * x for x in offset))
            assert sorted(group.tolist()) == sorted(offsets[: STEM.group_size])
            assert [0.0, 0.0, 0.0] in group.tolist()


@torch.no_grad()
def test_group_encoder_equals_its_layers_one_point_at_a_time():
    encoder = build().stems["point"].group_encoder.double()
    _, groups = group_points(clouds().double(), STEM)

    def layer(name, x):
        convolution = getattr(encoder, name)
        return convolution.weight[:, :, 0] @ x + convolution.bias

    def norm_relu(name, x):
        norm = getattr(encoder, name)
        scaled = (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
        return (scaled * norm.weight + norm.bias).clamp(min=0)

    for row in range(2):
        for number, group in enumerate(groups[row]):
            points = [layer("point_out", norm_relu("point_norm", layer("point_in", point))) for point in group]
            highest = torch.stack(points).amax(dim=0)
            points = [
                layer("group_out", norm_relu("group_norm", layer("group_in", torch.cat([highest, point]))))
                for point in points
            ]
            torch.testing.assert_close(encoder(groups)[row, number], torch.stack(points).amax(dim=0))


@torch.no_grad()
def test_order_of_points_matters_only_for_the_start():
    encoder, points = build(), clouds()
    expected = encoder({"point": points})["point"]
    order = torch.randperm(19, generator=torch.Generator().manual_seed(3))
    moved = points[:, order]
    start = int((order == STEM.start).nonzero())
    shuffled = build(start=start)({"point": moved})["point"]
    torch.testing.assert_close(shuffled, expected, rtol=0, atol=1e-5)
    assert (build(start=7)({"point": points})["point"] - expected).abs().max() > 1e-3


@torch.no_grad()
def test_moved_cloud_keeps_its_patches_and_changes_its_positions():
    stem, points = build().stems["point"], clouds()
    before, after = stem(points), stem(points + torch.tensor([4.0, -2.0, 1.0]))
    torch.testing.assert_close(after.tokens, before.tokens, rtol=0, atol=1e-4)
    assert torch.equal(after.position[:, 0], before.position[:, 0])  # the class token is nowhere
    assert (after.position[:, 1:] - before.position[:, 1:]).abs().amax(dim=-1).min() > 1e-2


@torch.no_grad()
def test_positions_come_from_the_centres():
    stem, points = build(2).stems["point"], clouds()
    centers, _ = group_points(points, STEM)
    position = stem(points).position
    assert torch.equal(position[:, :2], stem.cls_position.expand(2, -1, -1))
    first, last = stem.position[0], stem.position[2]
    torch.testing.assert_close(position[:, 2:], last(F.gelu(first(centers))))


@torch.no_grad()
def test_positions_are_added_before_every_block_and_a_norm_ends_the_trunk():
    encoder = build()
    stem_output, trunk = encoder.stems["point"](clouds()), encoder.trunks["point"]
    tokens = stem_output.tokens
    for block in trunk.blocks:
        tokens = block(tokens + stem_output.position)
        assert block.attention.qkv.bias is None and block.attention.bias_k is None
        assert block.attention_norm.eps == block.mlp_norm.eps == 1e-5
    norm = trunk.final_norm
    expected = F.layer_norm(tokens, (24,), norm.weight, norm.bias, eps=1e-5)
    assert torch.equal(encoder.stages("point", clouds()).trunk_tokens, expected)


@torch.no_grad()
def test_a_feature_is_its_class_token_and_the_maximum_over_the_groups():
    encoder = build(3)
    stages, trunk = encoder.stages("point", clouds()), encoder.trunks["point"]
    highest = stages.trunk_tokens[:, 3:].max(dim=1).values
    for feature in range(3):
        pooled = torch.cat([stages.trunk_tokens[:, feature], highest], dim=-1)
        assert torch.equal(trunk.pool(stages.trunk_tokens)[:, feature], pooled)
        torch.testing.assert_close(stages.head[:, feature], encoder.heads["point"](pooled @ trunk.projection))
    assert encoder.heads["point"].norm.eps == 1e-6


def test_training_keeps_the_batch_norm_statistics():
    encoder, points = build(), clouds()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    expected = encoder({"point": points})["point"]
    actual = encoder.train()({"point": points})["point"]
    assert torch.equal(actual, expected)
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())
    assert encoder.training and not encoder.stems["point"].group_encoder.point_norm.training
    actual.sum().backward()
    assert encoder.stems["point"].group_encoder.group_norm.weight.grad is not None


@torch.no_grad()
def test_groups_are_found_in_full_precision():
    stem = build().bfloat16().stems["point"]
    near, far = stem(clouds()).tokens, stem(clouds() + 60.0).tokens  # where bfloat16 has steps of 0.25
    assert near.dtype == far.dtype == torch.bfloat16
    assert (near - far).abs().max() < 0.05 * near.std()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_coordinates_that_are_not_finite_are_refused(value):
    points = clouds()
    points[1, 7, 2] = value
    with pytest.raises(ValueError, match="coordinates that are not finite; leave those points out"):
        build()({"point": points})


def test_a_cloud_must_have_enough_points():
    assert PointStemConfig(groups=6, group_size=9, start=3, points=40).least_points == 9
    assert PointStemConfig(groups=6, group_size=5, start=9, points=40).least_points == 10
    assert build()({"point": clouds(points=6)})["point"].shape == (2, 1, 14)
    with pytest.raises(ValueError, match="of at least 10 points"):
        build(start=9)({"point": clouds(points=9)})
    with pytest.raises(ValueError, match="type torch.int64 but must be floating-point"):
        build()({"point": torch.ones(2, 19, 3, dtype=torch.int64)})


def test_full_sizes_of_the_fixed_layers():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in GroupEncoder(256).state_dict().items() if value.ndim > 1}
    assert shapes == {
        "point_in.weight": (128, 3, 1),
        "point_out.weight": (256, 128, 1),
        "group_in.weight": (512, 512, 1),
        "group_out.weight": (256, 512, 1),
    }
