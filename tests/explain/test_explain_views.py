"""Where the connector looked: rollouts against the attention that really happened, and maps in their right places."""

import pytest
import tiny
import torch
from torch.nn import functional as F

from adapter_llm.clip import ClipEncoder
from adapter_llm.config import ClipConfig, ConnectorConfig
from adapter_llm.connector import build_connector
from adapter_llm.explain.rollout import clip_rollout, connector_rollout, rollout, trunk_rollout
from adapter_llm.explain.views import backbone_maps, class_activation, views
from adapter_llm.processing import LoadedItem
from imagebind_encoder import EncoderConfig, ImageBindEncoder, ImageConfig, Modality, PatchStemConfig, TrunkConfig
from imagebind_encoder.media import fit_image, load_image

SIZE, PATCH, GRID = 42, 14, 3
CPU = torch.device("cpu")
TRUNKS = {
    "vision": TrunkConfig(12, 3, 3, 2, stem=PatchStemConfig(3, (2, SIZE, SIZE), (2, PATCH, PATCH), (2, PATCH, PATCH))),
    "audio": TrunkConfig(16, 2, 4, 2, stem=PatchStemConfig(1, (20, 33), (8, 8), (5, 6))),
    "depth": TrunkConfig(10, 2, 5, 2, stem=PatchStemConfig(1, (24, 16), (8, 8), (8, 8))),
    "imu": TrunkConfig(22, 1, 2, 2, stem=PatchStemConfig(6, (80,), (8,), (8,))),
    "text": TrunkConfig(18, 1, 3, 2),
}
INPUTS = {"vision": (3, SIZE, SIZE), "audio": (2, 1, 20, 33), "depth": (1, 24, 16), "imu": (6, 80)}
GRIDS = {"vision": (3, 3), "audio": (3, 5), "depth": (3, 2)}
BACKBONE, PLACES = "test_efficientnet", 3  # timm's own, made for tests; 70 pixels are three strides of 32


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    return tiny.shake(ImageBindEncoder(EncoderConfig(20, TRUNKS, ImageConfig(size=SIZE))), 0.4).eval()


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(2)
    return tiny.shake(ClipEncoder(ClipConfig(20, 24, 3, 4, PATCH, ImageConfig(size=SIZE))), 0.2).eval()


@pytest.fixture(scope="module", params=[0, 1])
def small(request):
    """An encoder whose stem is a CNN, with no blocks behind it, or one."""
    torch.manual_seed(3)
    trunk = TrunkConfig(24, request.param, 3, num_cls_tokens=2, backbone=BACKBONE)
    made = ImageBindEncoder(EncoderConfig(20, {"vision": trunk}, ImageConfig(size=70)))
    torch.nn.init.normal_(made.stems["vision"].backbone.classifier.weight)
    tiny.shake(made.trunks, 0.3), tiny.shake(made.stems["vision"].summary, 0.2)
    return made.eval()


@pytest.fixture
def happened(monkeypatch):
    """Shares by the queries and keys that attention is really called with, one (T, T) a block."""
    calls = []

    def attention(query, key, value, **kwargs):
        weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)[0]
        tokens = weights[..., : weights.shape[1]]  # without a learned key, which is the last
        calls.append((tokens / tokens.sum(-1, keepdim=True)).mean(0))
        return original(query, key, value, **kwargs)

    def shares():
        total = torch.eye(len(calls[0]))
        for weights in calls:
            total = (0.5 * weights + 0.5 * torch.eye(len(total))) @ total
        return total

    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    return shares


def item(modality, seed=5, shape=None):
    torch.manual_seed(seed)
    return LoadedItem(Modality(modality), 1.0, torch.randn(shape or INPUTS[modality]))


def attention(count=2):
    weights = torch.rand(count) + 0.1
    return weights / weights.sum()


def test_rollout_of_a_case_worked_out_by_hand():
    first, second = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.2, 0.8], [0.0, 1.0]])
    # the first block keeps token 0 and gives token 1 a quarter of it; the second mixes 0.6 of 0 with 0.4 of 1
    expected = torch.tensor([[0.6 + 0.4 * 0.25, 0.4 * 0.75], [0.25, 0.75]])
    tiny.assert_close(rollout([first, second], 2), expected)
    assert torch.equal(rollout([], 3), torch.eye(3))


@pytest.mark.parametrize("modality", ["vision", "audio", "depth"])
@torch.no_grad()
def test_a_trunk_is_rolled_out_by_the_attention_that_happened(encoder, happened, modality):
    one = item(modality).tensor
    one = one[0] if modality == "audio" else one
    stages = encoder.stages(modality, one[None])
    expected = happened()
    shares = trunk_rollout(encoder.trunks[modality], stages.stem_tokens[0])
    tiny.assert_close(shares, expected)
    tiny.assert_close(shares.sum(1), torch.ones(len(shares)))


@torch.no_grad()
def test_clip_is_rolled_out_by_the_attention_that_happened(clip, happened):
    image = item("vision").tensor
    clip({"vision": image[None]})
    expected = happened()
    tiny.assert_close(clip_rollout(clip, image), expected)
    (view,) = views(clip, item("vision"), torch.eye(10)[0], CPU)
    tiny.assert_close(view.patch_map.flatten(), expected[0, 1:] / expected[0, 1:].sum())
    (view,) = views(clip, item("vision"), torch.eye(10)[4], CPU)
    assert torch.equal(view.patch_map.flatten(), torch.eye(9)[3])
    assert view.extent == (0, SIZE, SIZE, 0)


@torch.no_grad()
def test_the_connector_is_rolled_out_by_the_attention_that_happened(happened):
    connector = tiny.adapter_llm().connector
    features = tiny.features(1)
    connector(features)
    expected = happened()[: tiny.QUERY_LEN, tiny.QUERY_LEN :]
    shares = connector_rollout(connector, features[0])
    assert shares.shape == (tiny.QUERY_LEN, tiny.FEATURES)
    tiny.assert_close(shares, expected / expected.sum(1, keepdim=True))


def test_a_bridge_takes_each_token_from_its_feature():
    bridge = build_connector(ConnectorConfig(kind="bridge", depth=1), 20, 3, 48)
    assert torch.equal(connector_rollout(bridge, tiny.features(1, 3)[0]), torch.eye(3))


@pytest.mark.parametrize("modality", GRIDS)
@torch.no_grad()
def test_a_map_is_where_the_read_features_looked(encoder, modality):
    given, weights = item(modality), attention()
    clips = given.tensor if modality == "audio" else given.tensor[None]
    found = list(views(encoder, given, weights, CPU))
    assert len(found) == len(clips)
    for view, clip in zip(found, clips, strict=True):
        shares = trunk_rollout(encoder.trunks[modality], encoder.stages(modality, clip[None]).stem_tokens[0])
        expected = weights @ shares[:2, 2:]
        assert view.patch_map.shape == GRIDS[modality]
        tiny.assert_close(view.patch_map.flatten(), expected / expected.sum())
        assert view.modality == modality
        if modality != "vision":
            assert torch.equal(view.shown, clip[0])


def test_patches_lie_where_they_were_cut(encoder):
    (vision,), (depth,) = (list(views(encoder, item(name), attention(), CPU)) for name in ("vision", "depth"))
    assert vision.extent == (0, 42, 42, 0)
    assert depth.extent == (0, 16, 24, 0)
    audio, _ = views(encoder, item("audio"), attention(), CPU)  # patches overlap: 8 wide, 5 and 6 apart
    assert audio.extent == (1.0, 31.0, 16.5, 1.5)


def test_a_film_has_a_map_for_each_clip(encoder):
    film = item("vision", shape=(2, 3, 2, SIZE, SIZE))
    found = list(views(encoder, film, attention(), CPU))
    assert [view.shown.shape for view in found] == [(SIZE, SIZE, 3)] * 2
    assert not torch.equal(found[0].patch_map, found[1].patch_map)
    still = LoadedItem(Modality.VISION, 1.0, film.tensor[:1, :, :1].expand(-1, -1, 2, -1, -1))
    (moving,), (picture,) = (
        views(encoder, LoadedItem(Modality.VISION, 1.0, tensor), attention(), CPU)
        for tensor in (still.tensor, still.tensor[0, :, 0])
    )
    assert torch.equal(moving.shown, picture.shown)
    assert moving.patch_map.shape == picture.patch_map.shape


def test_what_lies_on_no_plane_has_no_view(encoder):
    assert not list(views(encoder, item("imu"), attention(), CPU))
    assert not list(views(encoder, LoadedItem(Modality.TEXT, 1.0, torch.ones(77).long()), attention(), CPU))
    assert not list(views(encoder, LoadedItem(Modality.AUDIO, 1.0, features=tiny.features(1)[0]), attention(), CPU))


@pytest.mark.parametrize("changes", [{}, {"channels": "bgr"}, {"crop": "squash"}])
def test_what_is_shown_are_the_pixels_that_the_model_saw(changes):
    import folders

    config = ImageConfig(size=SIZE, **changes)
    encoder = ImageBindEncoder(EncoderConfig(20, {"vision": TRUNKS["vision"]}, config)).eval()
    photo = folders.picture(1, 90, 60)
    given = LoadedItem(Modality.VISION, 1.0, load_image(photo, config))
    (view,) = views(encoder, given, attention(), CPU)
    pixels = torch.tensor(list(fit_image(photo, config).tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3)
    assert torch.equal(view.shown, pixels)


# a CNN as the stem


def places_of(small, image):
    with torch.no_grad():
        return small.stems["vision"].backbone.forward_features(image[None])[0]


@torch.no_grad()
def direction(stem, pooled):
    """What the norm behind the stem makes of class tokens, but for its weights: (N, W)."""
    tokens = stem.summarise(pooled[None])[0]
    return F.normalize(tokens - tokens.mean(-1, keepdim=True), dim=-1)


def test_class_activation_adds_up_to_all_that_the_places_changed(small):
    stem = small.stems["vision"]
    places = places_of(small, torch.randn(3, 70, 70))
    parts = class_activation(stem, places)
    assert parts.shape == (2, PLACES, PLACES)
    mean = places.mean((1, 2))
    blank = (direction(stem, mean) * direction(stem, torch.zeros_like(mean))).sum(-1)
    tiny.assert_close(parts.sum((1, 2)), 1 - blank, 1e-2)


def test_class_activation_is_where_the_only_activation_is(small):
    places = torch.zeros(256, PLACES, PLACES)
    places[:, 2, 1] = torch.rand(256)
    parts = class_activation(small.stems["vision"], places)
    assert (parts[:, 2, 1] > 0).all()
    parts[:, 2, 1] = 0
    assert not parts.any()


def test_class_activation_works_inside_inference_mode(small):
    image = torch.randn(3, 70, 70)
    expected = class_activation(small.stems["vision"], places_of(small, image))
    with torch.inference_mode():
        places = small.stems["vision"].backbone.forward_features(image[None])[0]
        assert torch.equal(class_activation(small.stems["vision"], places), expected)
    assert all(parameter.grad is None for parameter in small.parameters())


@torch.no_grad()
def test_maps_of_a_backbone(small):
    stem, trunk = small.stems["vision"], small.trunks["vision"]
    image, weights = torch.randn(3, 70, 70), attention()
    parts = class_activation(stem, places_of(small, image)).clamp(min=0).flatten(1)
    parts = parts / parts.sum(1, keepdim=True)
    if stem.projection is None:
        expected = parts  # class tokens are features as they come
    else:
        shares = trunk_rollout(trunk, stem(image[None]).tokens[0])[:2]
        expected = shares[:, :2] @ parts + shares[:, 2:]
    maps = backbone_maps(stem, trunk, image)
    tiny.assert_close(maps.flatten(1), expected, 1e-4)
    tiny.assert_close(maps.sum((1, 2)), torch.ones(2))
    (view,) = views(small, LoadedItem(Modality.VISION, 1.0, image), weights, CPU)
    tiny.assert_close(view.patch_map.flatten(), weights @ expected, 1e-4)
    assert view.extent == pytest.approx((0, 70, 70, 0))


@torch.no_grad()
def test_frames_of_a_clip_are_averaged_as_the_backbone_averages_them(small, monkeypatch):
    stem, trunk = small.stems["vision"], small.trunks["vision"]
    frames, seen = torch.randn(3, 2, 70, 70), []
    monkeypatch.setattr(
        "adapter_llm.explain.views.class_activation",
        lambda stem, places: seen.append(places) or class_activation(stem, places),
    )
    backbone_maps(stem, trunk, frames)
    (places,) = seen
    tiny.assert_close(stem.summarise(places.mean((1, 2))[None]), stem(frames[None]).tokens[:, :2])
    still = frames[:, :1].expand(-1, 2, -1, -1)
    tiny.assert_close(backbone_maps(stem, trunk, still), backbone_maps(stem, trunk, frames[:, 0]), 1e-4)


@torch.no_grad()
def test_sounds_through_a_backbone_have_maps_of_time_and_frequency():
    trunk = TrunkConfig(24, 0, 3, num_cls_tokens=2, backbone=BACKBONE, backbone_classes=11,
                        stem=PatchStemConfig(1, (40, 130), (16, 16), (10, 10)))  # fmt: skip
    encoder = ImageBindEncoder(EncoderConfig(20, {"audio": trunk})).eval()
    sound = item("audio", shape=(2, 1, 40, 130))
    found = list(views(encoder, sound, attention(), CPU))
    places = encoder.stems["audio"].maps(sound.tensor)
    assert len(found) == 2
    for view, one, clip in zip(found, places, sound.tensor, strict=True):
        assert view.patch_map.shape == one.shape[1:]
        assert torch.equal(view.shown, clip[0])
        assert view.extent == pytest.approx((0, 130, 40, 0))
    assert places.shape[3] > places.shape[2] > 1


def test_a_picture_that_says_nothing_has_an_even_map(small, monkeypatch):
    if small.stems["vision"].projection is None:
        monkeypatch.setattr(
            "adapter_llm.explain.views.class_activation", lambda stem, places: -torch.ones(2, PLACES, PLACES)
        )
        (view,) = views(small, item("vision", shape=(3, 70, 70)), attention(), CPU)
        tiny.assert_close(view.patch_map, torch.full((PLACES, PLACES), 1 / 9))
