"""Laws of ImageBindEncoder that hold for any weights, on sizes that are all different."""

from dataclasses import replace

import pytest
import torch

from imagebind_encoder import (
    EncoderConfig,
    ImageBindEncoder,
    Modality,
    PatchStemConfig,
    PointStemConfig,
    TextStemConfig,
    TrunkConfig,
    load_official,
)
from imagebind_encoder.convert import from_official, to_official

E = 14
CONFIG = EncoderConfig(E, {
    "vision": TrunkConfig(12, 2, 3, stem=PatchStemConfig(3, (2, 42, 42), (2, 14, 14), (2, 14, 14), norm=False)),
    "text": TrunkConfig(10, 3, 2, stem=TextStemConfig(31, 7)),
    "audio": TrunkConfig(16, 1, 4, stem=PatchStemConfig(1, (26, 56), (16, 16), (10, 10))),
    "depth": TrunkConfig(18, 2, 2, stem=PatchStemConfig(1, (32, 32), (16, 16), (16, 16))),
    "thermal": TrunkConfig(20, 1, 5, stem=PatchStemConfig(1, (48, 48), (16, 16), (16, 16))),
    "imu": TrunkConfig(22, 2, 2, stem=PatchStemConfig(6, (80,), (8,), (8,))),
    "point": TrunkConfig(24, 2, 3, stem=PointStemConfig(6, 5, channels=11, output_width=13, start=2, points=19)),
})  # fmt: skip
PATCHES = {"vision": 9, "text": 7, "audio": 10, "depth": 4, "thermal": 9, "imu": 10, "point": 6}


def build(num_cls_tokens=1, **options):
    torch.manual_seed(5)
    trunks = {name: replace(trunk, num_cls_tokens=num_cls_tokens) for name, trunk in CONFIG.trunks.items()}
    encoder = ImageBindEncoder(replace(CONFIG, trunks=trunks), **options).eval()
    with torch.no_grad():  # as far from a fresh model as a trained one
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return encoder


def inputs(batch=2):
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, trunk in CONFIG.trunks.items():
        if name == "text":
            tensors[name] = torch.randint(1, 31, (batch, 7), generator=generator)
        elif name == "point":
            tensors[name] = torch.randn(batch, trunk.stem.points, 3, generator=generator)
        else:
            size = trunk.stem.size[-2:]
            tensors[name] = torch.randn(batch, trunk.stem.channels, *size, generator=generator)
    return tensors


@pytest.mark.parametrize("num_cls_tokens", [1, 3])
@torch.no_grad()
def test_shapes_of_every_stage(num_cls_tokens):
    encoder = build(num_cls_tokens)
    features = encoder(inputs())
    assert list(features) == list(Modality)
    for name, tensor in inputs().items():
        stages = encoder.stages(name, tensor)
        tokens = PATCHES[name] + num_cls_tokens - (name == "text")
        assert stages.stem_tokens.shape == stages.trunk_tokens.shape == (2, tokens, CONFIG.trunks[name].width)
        assert stages.head.shape == stages.embedding.shape == (2, num_cls_tokens, E)
        assert torch.equal(features[name], stages.embedding)
        assert features[name].isfinite().all()


@torch.no_grad()
def test_class_tokens_differ_from_each_other():
    for features in build(3)(inputs()).values():
        assert (features[:, 0] - features[:, 1]).abs().max() > 1e-3
        assert (features[:, 1] - features[:, 2]).abs().max() > 1e-3


@torch.no_grad()
def test_more_text_class_tokens_leave_the_published_one_alone():
    """The text stays causal: its own feature must not notice the added tokens."""
    one, three = build(1), build(3)
    state_dict = three.state_dict()
    one.load_state_dict({key: state_dict[key] for key in one.state_dict() if ".text." in key}, strict=False)
    ids = inputs()["text"]
    torch.testing.assert_close(three({"text": ids})["text"][:, :1], one({"text": ids})["text"], rtol=0, atol=2e-5)


@torch.no_grad()
def test_added_text_class_tokens_see_the_whole_text():
    encoder, ids = build(3), inputs()["text"]
    changed = ids.clone()
    changed[:, -1] = torch.where(ids[:, -1] == 1, 2, 1)
    before, after = (encoder.stages("text", x).trunk_tokens for x in (ids, changed))
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 7:] - after[:, 7:]).abs().amax(dim=(1, 2)).min() > 1e-4


@torch.no_grad()
def test_text_is_read_at_the_first_largest_id():
    encoder = build()
    ids = torch.tensor([[3, 30, 5, 30, 1, 2, 0]])
    stages = encoder.stages("text", ids)
    assert torch.equal(stages.head, encoder.heads["text"](stages.trunk_tokens[:, 1:2]))
    after_the_end = ids.clone()
    after_the_end[0, 2:] = 4
    torch.testing.assert_close(encoder({"text": after_the_end})["text"], stages.embedding, rtol=0, atol=1e-6)


@torch.no_grad()
def test_length_is_the_logit_scale():
    features = ImageBindEncoder(CONFIG)(inputs())
    lengths = {name: round(float(value.norm(dim=-1).mean()), 3) for name, value in features.items()}
    assert lengths == {"vision": 1, "text": 14.286, "audio": 20, "depth": 5, "thermal": 10, "imu": 5, "point": 1}


@torch.no_grad()
def test_logit_scale_stops_at_100():
    encoder = build()
    encoder.postprocessors["text"].log_scale.fill_(9.0)
    torch.testing.assert_close(encoder({"text": inputs()["text"]})["text"].norm(dim=-1), torch.full((2, 1), 100.0))


def test_only_the_text_scale_is_learned():
    encoder = build()
    assert [name for name, _ in encoder.named_parameters() if "log_scale" in name] == ["postprocessors.text.log_scale"]
    assert sum("log_scale" in name for name in encoder.state_dict()) == 6


@pytest.mark.parametrize("name, clip_axis", [("vision", 1), ("audio", 1), ("depth", 1), ("thermal", 1)])
@torch.no_grad()
def test_clips_are_embedded_one_by_one_then_averaged(name, clip_axis):
    encoder = build(2)
    first, second = inputs(2)[name], inputs(2)[name].flip(0) * 1.5
    clips = encoder({name: torch.stack([first, second], dim=clip_axis)})[name]
    expected = (encoder({name: first})[name] + encoder({name: second})[name]) / 2
    torch.testing.assert_close(clips, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_head_outputs_are_the_features_before_length_and_scale():
    encoder = build(2)
    heads, features = encoder.head_outputs(inputs()), encoder(inputs())
    assert list(heads) == list(features) == list(Modality)
    for name, head in heads.items():
        assert torch.equal(head, encoder.stages(name, inputs()[name]).head)
        torch.testing.assert_close(encoder.postprocessors[name](head), features[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["vision", "audio"])
@torch.no_grad()
def test_head_outputs_of_clips_are_averaged(name):
    encoder = build(2)
    first, second = inputs(2)[name], inputs(2)[name].flip(0) * 1.5
    clips = encoder.head_outputs({name: torch.stack([first, second], dim=1)})[name]
    expected = (encoder.head_outputs({name: first})[name] + encoder.head_outputs({name: second})[name]) / 2
    torch.testing.assert_close(clips, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_head_outputs_run_each_part_once():
    encoder, ran = build(), []
    for part in (encoder.stems, encoder.trunks, encoder.heads):
        part["point"].register_forward_hook(lambda module, *_: ran.append(type(module).__name__))
    encoder.head_outputs({"point": inputs()["point"]})
    assert ran == ["PointStem", "PointTrunk", "Head"]


@torch.no_grad()
def test_image_is_a_clip_that_stands_still():
    encoder, image = build(), inputs()["vision"]
    expected = encoder({"vision": image})["vision"]
    for video in (image[:, :, None], image[:, :, None].expand(-1, -1, 2, -1, -1)):
        torch.testing.assert_close(encoder({"vision": video[:, None]})["vision"], expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_batch_equals_one_by_one():
    encoder = build(2)
    for name, tensor in inputs(3).items():
        alone = torch.cat([encoder({name: row[None]})[name] for row in tensor])
        torch.testing.assert_close(encoder({name: tensor})[name], alone, rtol=0, atol=2e-5)


@torch.no_grad()
def test_other_image_sizes_resample_patch_positions_only():
    stem = build(2).stems["vision"]
    assert stem.position_for(3) is stem.position
    larger = stem.position_for(5)
    assert larger.shape == (1, 2 + 25, 12)
    assert torch.equal(larger[:, :2], stem.position[:, :2])
    stem.position[:, 2:] = 0.25
    torch.testing.assert_close(stem.position_for(5)[:, 2:], torch.full((1, 25, 12), 0.25))
    assert stem(torch.zeros(1, 3, 70, 70)).tokens.shape == (1, 27, 12)


@torch.no_grad()
def test_positions_are_sampled_at_pixel_centres_without_antialias():
    trunk = TrunkConfig(4, 1, 1, stem=PatchStemConfig(3, (2, 112, 112), (2, 14, 14), (2, 14, 14), norm=False))
    stem = ImageBindEncoder(EncoderConfig(E, {"vision": trunk})).stems["vision"]
    stem.position.zero_()[:, 1:].unflatten(1, (8, 8))[:, :, 3] = 1.0
    row = stem.position_for(4)[0, 1:].unflatten(0, (4, 4))[1, :, 0]
    # Half the columns: the second looks between columns 2 and 3, half a step from the impulse.
    # Cubic convolution with a = -0.75 weighs distance 0.5 by 0.59375 and 1.5 by -0.09375.
    torch.testing.assert_close(row, torch.tensor([0.0, 0.59375, -0.09375, 0.0]))


def test_trunks_not_asked_for_are_not_built():
    encoder = ImageBindEncoder(CONFIG, modalities=["imu", Modality.VISION])
    assert encoder.modalities == (Modality.VISION, Modality.IMU)
    assert {key.split(".")[1] for key in encoder.state_dict()} == {"vision", "imu"}
    with pytest.raises(ValueError, match="no audio trunk, only vision, imu; ask for it"):
        encoder({"audio": inputs()["audio"]})


def test_trunk_without_sizes_cannot_be_built():
    small = EncoderConfig(E, {"imu": CONFIG.trunks["imu"]})
    with pytest.raises(ValueError, match="has trunks for imu, so it cannot build audio"):
        ImageBindEncoder(small, modalities=["audio", "imu"])
    with pytest.raises(ValueError, match="an encoder of no modality"):
        ImageBindEncoder(small, modalities=[])


def test_meta_construction_and_assignment():
    with torch.device("meta"):
        empty = ImageBindEncoder(CONFIG)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    full = build()
    empty.load_state_dict(full.state_dict(), assign=True)
    for name, features in empty.eval()(inputs()).items():
        assert torch.equal(features, full(inputs())[name])


def test_every_parameter_is_initialised_and_trains():
    for seed in (1, 2):
        torch.manual_seed(seed)
        encoder = ImageBindEncoder(replace(CONFIG, trunks={
            name: replace(trunk, num_cls_tokens=2) for name, trunk in CONFIG.trunks.items()
        }))  # fmt: skip
        assert all(parameter.isfinite().all() and parameter.abs().max() <= 3 for parameter in encoder.parameters())
    sum(features[..., 0].sum() for features in encoder(inputs()).values()).backward()
    untouched = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert untouched == []


def test_bfloat16_follows_float32():
    encoder = build()
    expected = encoder(inputs())
    for name, features in encoder.bfloat16()(inputs()).items():
        similarity = torch.cosine_similarity(features.float(), expected[name], dim=-1)
        assert features.dtype == torch.bfloat16 and similarity.min() > 0.99


@pytest.mark.parametrize("name, shape, message", [
    ("vision", (1, 3, 2, 42, 42), r"needs its clip axis: pass video\[:, None\]"),
    ("vision", (1, 1, 3, 3, 42, 42), "clips of 2 frames"),
    ("vision", (1, 1, 3, 4, 42, 42), r"has shape \(1, 3, 4, 42, 42\)"),
    ("vision", (3, 42, 42), "channels second"),
    ("vision", (1, 42, 42, 3), "channels second"),
    ("vision", (1, 3, 42, 56), "must be square"),
    ("vision", (1, 3, 13, 13), "at least 14 pixels"),
    ("audio", (1, 1, 26, 57), r"must be \(B, 1, 26, 56\); pad, crop or resize"),
    ("depth", (1, 3, 32, 32), r"must be \(B, 1, 32, 32\)"),
    ("thermal", (48, 48), r"must be \(B, 1, 48, 48\)"),
    ("imu", (1, 6, 79), r"must be \(B, 6, 80\); resample or cut"),
    ("imu", (1, 6, 88), r"must be \(B, 6, 80\)"),
    ("imu", (1, 2, 6, 80), r"must be \(B, 6, 80\)"),
    ("point", (19, 3), r"must be floating-point coordinates \(B, points, 3\) of at least 6 points; give one x, y, z"),
    ("point", (1, 19, 6), r"has shape \(1, 19, 6\)"),
    ("point", (2, 5, 3), r"has shape \(2, 5, 3\) .* at least 6 points"),
    ("point", (2, 2, 19, 3), r"must be floating-point coordinates \(B, points, 3\)"),
    ("text", (2, 6), r"must be integer ids \(B, 7\)"),
    ("text", (2, 7), "torch.float32 but must be integer"),
])  # fmt: skip
def test_wrong_shapes_say_what_to_do(name, shape, message):
    with pytest.raises(ValueError, match=message):
        build()({name: torch.zeros(shape)})


def test_imu_cuts_the_tail():
    encoder, samples = build(), inputs()["imu"]
    longer = torch.cat([samples, torch.randn(2, 6, 7)], dim=-1)
    assert torch.equal(encoder({"imu": longer})["imu"], encoder({"imu": samples})["imu"])


def test_ids_beyond_the_vocabulary_are_named():
    with pytest.raises(ValueError, match="ids from 0 to 31 but the vocabulary has 31"):
        build()({"text": torch.tensor([[0, 1, 2, 3, 4, 5, 31]])})


def test_official_layout_has_no_place_for_more_class_tokens():
    with pytest.raises(ValueError, match="more than one class token"):
        to_official(build(2).state_dict())
    with pytest.raises(ValueError, match=r"extra_cls_tokens holds"):
        to_official({k: v for k, v in build(2).state_dict().items() if ".text." in k})


def test_only_a_causal_mask_is_accepted():
    official = to_official(build().state_dict())
    from_official(official)
    official["modality_preprocessors.text.mask"] = torch.zeros(7, 7)
    with pytest.raises(ValueError, match="not a causal mask"):
        from_official(official)


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_official(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("not found")
    with pytest.raises(ValueError, match=r"text\.pth cannot be read as a torch checkpoint"):
        load_official(tmp_path / "text.pth")
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="not a state dict"):
        load_official(tmp_path / "nested.pth")
    torch.save({"layer.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="unknown keys .*layer.weight"):
        load_official(tmp_path / "other.pth")
    only_imu = {k: v for k, v in to_official(build().state_dict()).items() if ".imu." in k}
    torch.save(only_imu, tmp_path / "imu.pth")
    with pytest.raises(ValueError, match="has no audio trunk, only imu"):
        load_official(tmp_path / "imu.pth", modalities=["audio"], heads={Modality.IMU: 2})
