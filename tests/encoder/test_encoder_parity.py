"""The encoder against recorded numbers of the original, read from a golden folder.

Nothing here knows which cases or sizes the folder holds.
"""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from imagebind_encoder import EncoderConfig, ImageBindEncoder, KeyMismatchError, Modality, load_official
from imagebind_encoder.convert import config_from_official, from_official, key_table, to_official

LIMIT = 2e-5  # on max|difference| / rms(expected); the smallest mistake measured is 1.7e-4
STAGES = ("stem_tokens", "trunk_tokens", "pre_post", "embedding")


@pytest.fixture(scope="module")
def folder(golden):
    if not (golden / "imagebind" / "imagebind_small.pth").exists():
        pytest.skip(f"no imagebind data in {golden}")
    return golden / "imagebind"


@pytest.fixture(scope="module")
def sizes(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def published(folder):
    return torch.load(folder / "imagebind_small.pth", weights_only=True)


@pytest.fixture(scope="module")
def heads(sizes):
    counts = sizes["model_kwargs"]
    return {name: counts[f"{name}_num_heads"] for name in Modality if f"{name}_num_heads" in counts}


@pytest.fixture(scope="module")
def encoder(folder, heads):
    return load_official(folder / "imagebind_small.pth", heads=heads)


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.square().mean().sqrt())


@torch.no_grad()
def test_every_stage_of_every_case_equals_the_original(folder, sizes, encoder):
    if not (folder / "io.safetensors").exists():
        pytest.skip(f"no recorded numbers in {folder}")
    recorded = load_file(folder / "io.safetensors")
    errors = {}
    for case, described in sizes["cases"].items():
        if f"in.{case}" not in recorded or described["modality"] not in encoder.modalities:
            continue
        tensor = recorded[f"in.{case}"]
        assert list(tensor.shape) == described["shape"]
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        stages = encoder.stages(described["modality"], tensor)
        values = (stages.stem_tokens, stages.trunk_tokens, stages.head[:, 0], stages.embedding[:, 0])
        actual = dict(zip(STAGES, values, strict=True))
        for stage, value in actual.items():
            for key, part in ((f"{case}.{stage}", value), (f"{case}.{stage}.every5", value[:, ::5])):
                if f"out.{key}" in recorded:
                    errors[key] = relative_error(part, recorded[f"out.{key}"])
        assert {key.split(".")[1] for key in errors if key.startswith(f"{case}.")} == set(STAGES)
    assert errors
    assert {key: error for key, error in errors.items() if not error <= LIMIT} == {}


def test_sizes_are_read_from_tensor_shapes(sizes, published, heads):
    config = config_from_official(published, heads)
    arguments, fixed = sizes["model_kwargs"], sizes["fixed_by_the_reference"]
    assert config.embedding_dim == arguments["out_embed_dim"]
    assert config.trunks
    for name, trunk in config.trunks.items():
        expected = [arguments[f"{name}_{entry}"] for entry in ("embed_dim", "num_blocks", "num_heads")]
        assert [trunk.width, trunk.depth, trunk.heads] == expected
        assert trunk.num_cls_tokens == 1 and trunk.mlp_ratio == 4
    stems = {name: trunk.stem for name, trunk in config.trunks.items()}
    if Modality.TEXT in stems:
        assert stems["text"].vocab_size == fixed["text_vocab"]
        assert stems["text"].context_length == fixed["text_context"]
    if Modality.IMU in stems:
        assert [stems["imu"].channels, *stems["imu"].size] == fixed["imu_in"]
    if Modality.VISION in stems:
        assert stems["vision"].size == (fixed["video_frames"], fixed["image_size"], fixed["image_size"])
        assert list(stems["vision"].kernel) == fixed["vision_kernel_stride"]


def test_round_trip_keeps_keys_order_and_bytes(published, encoder):
    exported = to_official(encoder.state_dict())
    assert list(exported) == [key for key in key_table(depths(published)) if key in published]
    assert set(exported) == set(published)
    for key, tensor in published.items():
        assert exported[key].dtype == tensor.dtype and exported[key].shape == tensor.shape
        assert exported[key].numpy().tobytes() == tensor.numpy().tobytes(), key


def depths(state_dict):
    blocks = re.compile(r"modality_trunks\.(\w+)\.blocks\.(\d+)\.")
    found = [match for match in map(blocks.match, state_dict) if match]
    return {Modality(name): 1 + max(int(m[2]) for m in found if m[1] == name) for name in {m[1] for m in found}}


@pytest.mark.parametrize("preset, file", [("huge", "imagebind_huge.json"), ("w3d", "imagebind_w3D.json")])
def test_published_layout_is_covered_in_both_directions(golden, preset, file):
    path = golden / "layouts" / file
    if not path.exists():
        pytest.skip(f"no {path}")
    layout = json.loads(path.read_text())["keys"]
    official = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, (shape, dtype) in layout.items()
    }
    config = EncoderConfig.preset(preset)
    with torch.device("meta"):
        state_dict = ImageBindEncoder(config).state_dict()
    described = {key: (value.shape, value.dtype) for key, value in state_dict.items()}
    for ours in (from_official(official, config), from_official(official)):
        assert {key: (value.shape, value.dtype) for key, value in ours.items()} == described
    exported = to_official(state_dict)
    assert list(exported) == list(layout)
    kinds = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in exported.items()}
    assert kinds == layout
    assert config_from_official(official) == config
    assert list(key_table({name: trunk.depth for name, trunk in config.trunks.items()})) == list(layout)


def test_missing_and_unknown_keys_are_listed(published):
    last = list(published)[-1]
    damaged = {**published, "modality_heads.smell.0.weight": torch.zeros(1)}
    del damaged[last]
    with pytest.raises(KeyMismatchError) as caught:
        from_official(damaged)
    assert caught.value.missing == [last]
    assert caught.value.unexpected == ["modality_heads.smell.0.weight"]
    assert last in str(caught.value) and "smell" in str(caught.value)


def test_every_single_key_is_needed(published):
    for key in published:
        rest = {other: value for other, value in published.items() if other != key}
        with pytest.raises(KeyMismatchError) as caught:
            from_official(rest)
        # Without any key of the last block the file looks like a shallower one, but no single key is all.
        assert key in caught.value.missing


def test_our_own_missing_and_unknown_keys_are_listed(encoder):
    state_dict = dict(encoder.state_dict())
    first = next(iter(state_dict))
    state_dict["heads.smell.bias"] = state_dict.pop(first)
    with pytest.raises(KeyMismatchError) as caught:
        to_official(state_dict)
    assert caught.value.missing == [first]
    assert caught.value.unexpected == ["heads.smell.bias"]


def test_wrong_shape_is_named(published, heads):
    config = config_from_official(published, heads)
    name, trunk = next(iter(config.trunks.items()))
    wider = EncoderConfig(config.embedding_dim, {name: replace(trunk, width=trunk.width + trunk.heads)})
    with pytest.raises(ValueError, match=rf"stems\.{name}.* has shape .* by the config"):
        from_official(published, wider)


def test_only_the_modalities_asked_for_are_loaded(folder, heads, encoder):
    one = encoder.modalities[-1]
    loaded = load_official(folder / "imagebind_small.pth", modalities=[one], heads=heads)
    assert loaded.modalities == (one,)
    assert not loaded.training
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[key])
