"""The published layout with a point-cloud trunk, both ways, on weights of any kind."""

from dataclasses import replace

import pytest
import torch

from imagebind_encoder import (
    EncoderConfig,
    ImageBindEncoder,
    KeyMismatchError,
    Modality,
    PatchStemConfig,
    PointStemConfig,
    TextStemConfig,
    TrunkConfig,
    load_official,
)
from imagebind_encoder.convert import (
    PUBLISHED_HEADS,
    causal_mask,
    config_from_official,
    from_official,
    key_table,
    to_official,
)

STEM = PointStemConfig(groups=6, group_size=5, channels=11, output_width=13, start=2, points=19)
CONFIG = EncoderConfig(14, {
    "text": TrunkConfig(16, 3, 2, stem=TextStemConfig(31, 7)),
    "imu": TrunkConfig(40, 1, 2, stem=PatchStemConfig(6, (80,), (8,), (8,))),
    "point": TrunkConfig(24, 2, 3, stem=STEM),
})  # fmt: skip
HEADS = {"text": 2, "imu": 2, "point": 3}
COUNTERS = [f"point_trunk.point_encoder.encoder.{part}_conv.1.num_batches_tracked" for part in ("first", "second")]


@pytest.fixture(scope="module")
def encoder():
    encoder = ImageBindEncoder(CONFIG)
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            tensor.copy_(torch.randint(2**40, ()) if name.endswith("tracked") else torch.rand(tensor.shape))
    return encoder.eval()


@pytest.fixture(scope="module")
def official(encoder):
    return to_official(encoder.state_dict())


def same_bytes(one, other):
    assert list(one) == list(other)
    for key, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[key].dtype, other[key].shape), key
        assert tensor.numpy().tobytes() == other[key].numpy().tobytes(), key


def test_round_trip_keeps_every_byte(encoder, official):
    for config in (None, CONFIG):
        ours = from_official(official, config)
        same_bytes({key: ours[key] for key in encoder.state_dict()}, encoder.state_dict())
        same_bytes(to_official(ours), official)
    assert all(official[key].dtype == torch.int64 and official[key].shape == () for key in COUNTERS)


def test_a_saved_file_loads_and_goes_back(tmp_path, encoder, official):
    torch.save(official, tmp_path / "small_w3D.pth")
    loaded = load_official(tmp_path / "small_w3D.pth", heads=HEADS, point=STEM)
    assert loaded.config == CONFIG
    same_bytes(to_official(loaded.state_dict()), official)
    only = load_official(tmp_path / "small_w3D.pth", modalities=["point"], heads=HEADS, point=STEM)
    assert only.modalities == (Modality.POINT,)
    points = torch.randn(2, 19, 3)
    assert torch.equal(only({"point": points})["point"], encoder({"point": points})["point"])


def test_only_names_and_shapes_are_needed(encoder, official):
    """A converter that moves tensors one by one has no others."""
    described = {key: tensor.to("meta") for key, tensor in official.items()}
    assert config_from_official(described, HEADS, point=STEM) == CONFIG
    for config in (None, CONFIG):
        ours = from_official(described, config)
        assert set(ours) == set(encoder.state_dict())
        back = {key: (value.shape, value.dtype) for key, value in to_official(ours).items()}
        assert back == {key: (value.shape, value.dtype) for key, value in official.items()}
    mask = official["modality_preprocessors.text.mask"]
    assert torch.equal(causal_mask(7, torch.empty(0)), mask)


def test_what_cannot_be_read_is_published_or_given(official):
    config = config_from_official(official)
    assert {name: trunk.heads for name, trunk in config.trunks.items()} == {"text": 16, "imu": 8, "point": 6}
    assert config.trunks["point"].stem == replace(PointStemConfig(), channels=11, output_width=13)
    some = config_from_official(official, {"imu": 10, "text": 4})
    assert [trunk.heads for trunk in some.trunks.values()] == [4, 10, PUBLISHED_HEADS["point"]]
    wrong = replace(STEM, channels=3, output_width=4)  # these are in the file
    assert config_from_official(official, HEADS, point=wrong).trunks["point"].stem == STEM


def test_every_single_key_is_needed(official):
    for key in official:
        rest = {other: value for other, value in official.items() if other != key}
        for config in (None, CONFIG):
            with pytest.raises(KeyMismatchError) as caught:
                from_official(rest, config)
            assert key in caught.value.missing
        with pytest.raises(KeyMismatchError):
            config_from_official(rest, HEADS, point=STEM)


@pytest.mark.parametrize("key", [
    "point_trunk.surprise", "point_trunk.point_encoder.blocks.blocks.1.attn.qkv.bias", "point_head.0.weight",
    "modality_heads.point.1.weight", "modality_trunks.point.blocks.0.norm_1.weight", "surprise",
])  # fmt: skip
def test_unknown_keys_are_listed(official, key):
    for config in (None, CONFIG):
        with pytest.raises(KeyMismatchError) as caught:
            from_official({**official, key: torch.zeros(1)}, config)
        assert caught.value.unexpected == [key] and caught.value.missing == []


def test_modalities_the_config_leaves_out_are_left_out(official):
    points = EncoderConfig(14, {"point": CONFIG.trunks["point"]})
    ours = from_official(official, points)
    assert {key.split(".")[1] for key in ours} == {"point"}
    others = EncoderConfig(14, {name: CONFIG.trunks[name] for name in ("text", "imu")})
    assert not any("point" in key for key in from_official(official, others))


def test_blocks_that_no_file_can_have_are_refused_at_once(official):
    far = "point_trunk.point_encoder.blocks.blocks.99999999999.norm1.weight"
    with pytest.raises(KeyMismatchError) as caught:
        from_official({**official, far: torch.zeros(24)})
    assert far in caught.value.unexpected


def test_wrong_sizes_are_named(official):
    wider = replace(CONFIG, trunks={"point": replace(CONFIG.trunks["point"], stem=replace(STEM, output_width=17))})
    with pytest.raises(ValueError, match=r"heads\.point\.norm\.weight has shape \(13,\).* but \(17,\) by the config"):
        from_official(official, wider)


def test_more_class_tokens_have_no_place_in_the_layout():
    trunk = replace(CONFIG.trunks["point"], num_cls_tokens=2)
    with pytest.raises(ValueError, match=r"stems\.point\.cls_token holds more than one class token"):
        to_official(ImageBindEncoder(EncoderConfig(14, {"point": trunk})).state_dict())


def expanded(pattern):
    """ "a.{b,c}" -> ["a.b", "a.c"]"""
    front, _, rest = pattern.partition("{")
    inside, _, behind = rest.partition("}")
    return [f"{front}{word}{behind}" for word in inside.split(",")] if rest else [pattern]


def test_point_keys_by_name():
    """The published file's, in its order, of a trunk with one block."""
    batch_norm = "{weight,bias,running_mean,running_var,num_batches_tracked}"
    keys = [
        *expanded("modality_heads.point.0.{weight,bias}"),
        "modality_heads.point.2.weight",
        "modality_postprocessors.point.1.log_logit_scale",
        "point_trunk.pc_projection",
    ]
    for pattern in (
        "{cls_token,cls_pos}",
        "encoder.first_conv.0.{weight,bias}",
        f"encoder.first_conv.1.{batch_norm}",
        "encoder.first_conv.3.{weight,bias}",
        "encoder.second_conv.0.{weight,bias}",
        f"encoder.second_conv.1.{batch_norm}",
        "encoder.second_conv.3.{weight,bias}",
        "reduce_dim.{weight,bias}",
        "pos_embed.0.{weight,bias}",
        "pos_embed.2.{weight,bias}",
        "blocks.blocks.0.norm1.{weight,bias}",
        "blocks.blocks.0.norm2.{weight,bias}",
        "blocks.blocks.0.mlp.fc1.{weight,bias}",
        "blocks.blocks.0.mlp.fc2.{weight,bias}",
        "blocks.blocks.0.attn.qkv.weight",
        "blocks.blocks.0.attn.proj.{weight,bias}",
        "norm.{weight,bias}",
    ):
        keys += expanded(f"point_trunk.point_encoder.{pattern}")
    assert list(key_table({Modality.POINT: 1})) == keys


def test_point_keys_come_last_but_for_head_and_scale():
    with_points, without = key_table({"imu": 1, "point": 2}), key_table({"imu": 1})
    assert [key for key in with_points if "point" not in key] == list(without)
    own = [key for key in with_points if key.startswith("point_trunk.")]
    assert list(with_points)[-len(own) :] == own
    assert len(set(with_points.values())) == len(with_points)
