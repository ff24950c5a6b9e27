"""EncoderConfig: plain data in and out, and errors that name what is wrong."""

import copy
import json
import pickle

import pytest

from imagebind_encoder import (
    ConfigError,
    EncoderConfig,
    ImageConfig,
    Modality,
    PatchStemConfig,
    PointStemConfig,
    TextStemConfig,
    TrunkConfig,
)


def plain():
    trunks = {"vision": TrunkConfig(12, 1, 3), "text": TrunkConfig(8, 2, 2), "point": TrunkConfig(6, 3, 1)}
    return EncoderConfig(10, trunks).to_dict()


def test_modality_is_its_name():
    assert str(Modality.VISION) == f"{Modality.VISION}" == "vision"
    assert {Modality.AUDIO: 1}["audio"] == 1
    with pytest.raises(ConfigError, match="'smell'; the modalities are vision, text, audio, depth, thermal, imu, poi"):
        Modality("smell")


def test_huge_has_the_published_sizes():
    config = EncoderConfig.preset("huge")
    assert config.embedding_dim == 1024
    assert {str(m): (t.width, t.depth, t.heads) for m, t in config.trunks.items()} == {
        "vision": (1280, 32, 16),
        "text": (1024, 24, 16),
        "audio": (768, 12, 12),
        "depth": (384, 12, 8),
        "thermal": (768, 12, 12),
        "imu": (512, 6, 8),
    }
    patches = {str(m): t.stem.num_patches for m, t in config.trunks.items() if m != "text"}
    assert patches == {"vision": 256, "audio": 228, "depth": 196, "thermal": 196, "imu": 250}


def test_w3d_is_huge_and_a_point_trunk():
    huge, w3d = EncoderConfig.preset("huge"), EncoderConfig.preset("w3d")
    trunks = dict(w3d.trunks)
    point = trunks.pop(Modality.POINT)
    assert EncoderConfig(w3d.embedding_dim, trunks, w3d.image) == huge
    assert (point.width, point.depth, point.heads) == (384, 12, 6)
    stem = point.stem
    assert (stem.groups, stem.group_size, stem.channels, stem.output_width) == (512, 32, 256, 512)
    assert stem.start == 0 and stem.unit_sphere and stem.num_patches == 512


def test_unknown_preset_names_the_presets():
    with pytest.raises(ConfigError, match="no preset 'tiny'; the presets are huge, w3d"):
        EncoderConfig.preset("tiny")


@pytest.mark.parametrize("config", [
    EncoderConfig.preset("huge"),
    EncoderConfig.preset("w3d"),
    EncoderConfig(7, {"point": TrunkConfig(8, 1, 2, stem=PointStemConfig(3, 4, 5, 6, 7, 11, unit_sphere=False))}),
    EncoderConfig(7, {"vision": TrunkConfig(8, 1, 2, num_cls_tokens=3, mlp_ratio=2.5, backbone="resnet10t")},
                  ImageConfig(size=98, crop="squash", orient=False)),
])  # fmt: skip
def test_json_round_trip(config):
    assert EncoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for twin in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert twin == config and hash(twin) == hash(config)


def test_vision_stem_follows_the_image_size():
    config = EncoderConfig(7, {"vision": TrunkConfig(8, 1, 2)}, ImageConfig(size=112))
    assert config.trunks["vision"].stem.size == (2, 112, 112)


def test_config_cannot_be_changed():
    with pytest.raises(TypeError):
        EncoderConfig.preset("huge").trunks["vision"] = None


def changed(path, value):
    data = plain()
    *parents, last = path.split(".")
    entry = data
    for name in parents:
        entry = entry[name]
    entry[last] = value
    return data


@pytest.mark.parametrize("path, value, message", [
    ("dim", 3, "unknown key 'dim' in the encoder config; the keys are embedding_dim, trunks, image"),
    ("image.colour", 3, "unknown key 'colour' in image; the keys are size, mean, std, crop, orient"),
    ("trunks.text.layers", 3, r"unknown key 'layers' in trunks\.text; the keys are width, depth, heads"),
    ("trunks.text.stem.words", 3, r"unknown key 'words' in trunks\.text\.stem; the keys are vocab_size, context"),
    ("trunks.smell", {}, "no modality 'smell'"),
    ("trunks.imu", {"width": 4}, r"missing key 'depth', 'heads' in trunks\.imu"),
    ("trunks.text", 3, r"trunks\.text must be a mapping"),
    ("trunks", [], "trunks must map"),
    ("trunks", {}, "at least one modality"),
    ("trunks.text.heads", 3, "width 8 must be a multiple of its heads, 3"),
    ("trunks.text.depth", 0, "depth must be a positive integer, not 0"),
    ("trunks.text.depth", True, "depth must be a positive integer"),
    ("trunks.text.width", 8.0, "width must be a positive integer"),
    ("trunks.text.num_cls_tokens", 0, "num_cls_tokens must be a positive integer"),
    ("trunks.text.mlp_ratio", -1, "mlp_ratio must be a positive number"),
    ("trunks.text.backbone", "resnet10t", "only vision and audio trunks can have a backbone"),
    ("trunks.vision.backbone", 5, "backbone must be a timm model's name"),
    ("trunks.vision.stem.kernel", [2, 14], "as many axes"),
    ("trunks.vision.stem.kernel", [2, 14, 500], "does not fit"),
    ("trunks.vision.stem.stride", [2, 0, 14], "stride must be a positive integer"),
    ("embedding_dim", "10", "embedding_dim must be a positive integer"),
    ("image.size", 0, "size must be a positive integer"),
    ("image.mean", [1, 2], "mean needs three numbers"),
    ("image.std", [1, 0, 1], "std must be positive"),
    ("image.crop", "middle", "crop must be 'center' or 'squash'"),
    ("image.orient", 1, "orient must be true or false"),
    ("image.convert", "never", "convert must be 'first' or 'last', not 'never'"),
    ("image.channels", "gbr", "channels must be 'rgb' or 'bgr', not 'gbr'"),
    ("trunks.point.stem.colours", 3, r"unknown key 'colours' in trunks\.point\.stem; the keys are groups, group_size"),
    ("trunks.point.stem.size", [8], r"unknown key 'size' in trunks\.point\.stem"),
    ("trunks.point.stem.groups", 0, "PointStemConfig.groups must be a positive integer, not 0"),
    ("trunks.point.stem.output_width", 2.5, "output_width must be a positive integer"),
    ("trunks.point.stem.start", -1, "start must be an integer, at least 0, not -1"),
    ("trunks.point.stem.start", False, "start must be an integer"),
    ("trunks.point.stem.unit_sphere", "yes", "unit_sphere must be true or false, not 'yes'"),
    ("trunks.point.stem.points", 500, "points is 500, but 512 groups of 32 points that start at index 0 need 512"),
    ("trunks.point.stem.start", 8192, "start at index 8192 need 8193"),
    ("trunks.point.stem.group_size", 9000, "512 groups of 9000 points .* need 9000"),
    ("trunks.point.backbone", "resnet10t", "only vision and audio trunks can have a backbone"),
])  # fmt: skip
def test_bad_values_are_named(path, value, message):
    with pytest.raises(ConfigError, match=message):
        EncoderConfig.from_dict(changed(path, value))


def test_stem_of_another_modality_is_refused():
    flat = PatchStemConfig(channels=1, size=(32, 32), kernel=(16, 16), stride=(16, 16))
    with pytest.raises(ConfigError, match="text needs a TextStemConfig, not a PatchStemConfig"):
        EncoderConfig(7, {"text": TrunkConfig(8, 1, 2, stem=flat)})
    with pytest.raises(ConfigError, match="point needs a PointStemConfig, not a TextStemConfig"):
        EncoderConfig(7, {"point": TrunkConfig(8, 1, 2, stem=TextStemConfig())})
    with pytest.raises(ConfigError, match="a vision stem has 3 axes, not 2"):
        EncoderConfig(7, {"vision": TrunkConfig(8, 1, 2, stem=flat)})


@pytest.mark.parametrize("where, value", [(("image", "mean"), 3), (("trunks", "vision", "stem", "size"), 5)])
def test_a_number_in_place_of_a_list_is_a_sentence(where, value):
    data = EncoderConfig.preset("huge").to_dict()
    inner = data
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    with pytest.raises(ConfigError, match=f"{where[-1]} needs .*not {value}"):
        EncoderConfig.from_dict(data)
