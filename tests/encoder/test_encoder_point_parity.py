"""Point clouds, and head outputs of every modality, against recorded numbers of the original."""

import json

import pytest
import torch
from safetensors.torch import load_file

from imagebind_encoder import ImageBindEncoder, Modality, PointStemConfig, load_official
from imagebind_encoder.convert import from_official, to_official
from imagebind_encoder.point import group_points

LIMIT = 2e-5  # on max|difference| / rms(expected)
# Recorded inputs that are not named after their modality; "text_long" has its input beside its output.
MODALITY = {"image": "vision", "video": "vision", "text_long": "text"}


@pytest.fixture(scope="module")
def folders(golden):
    encoder, system = golden / "imagebind", golden / "imagebind_llm"
    needed = [encoder / "imagebind_small.pth", encoder / "io.safetensors"]
    needed += [system / name for name in ("imagebind_point_extra.pth", "cases.json", "io.safetensors")]
    for path in needed:
        if not path.exists():
            pytest.skip(f"no {path}")
    return encoder, system


@pytest.fixture(scope="module")
def described(folders):
    return json.loads((folders[1] / "cases.json").read_text())["point"]


@pytest.fixture(scope="module")
def recorded(folders):
    return load_file(folders[1] / "io.safetensors")


@pytest.fixture(scope="module")
def published(folders):
    """What a published file with a point-cloud trunk holds."""
    encoder, system = folders
    files = (encoder / "imagebind_small.pth", system / "imagebind_point_extra.pth")
    first, second = (torch.load(file, weights_only=True) for file in files)
    assert not first.keys() & second.keys()
    return first | second


@pytest.fixture(scope="module")
def encoder(folders, described, published, tmp_path_factory):
    counts = json.loads((folders[0] / "config.json").read_text())["model_kwargs"]
    heads = {name: counts[f"{name}_num_heads"] for name in Modality if f"{name}_num_heads" in counts}
    stem = PointStemConfig(
        groups=described["num_group"],
        group_size=described["group_size"],
        start=described["fps_start_index"],
        points=described["n_points"],
    )
    path = tmp_path_factory.mktemp("published") / "w3D.pth"
    torch.save(published, path)
    return load_official(path, heads={**heads, Modality.POINT: described["num_heads"]}, point=stem)


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.square().mean().sqrt())


def test_sizes_are_read_from_tensor_shapes(encoder, described):
    trunk = encoder.config.trunks["point"]
    assert (trunk.width, trunk.depth, trunk.mlp_ratio) == (described["trans_dim"], described["depth"], 4)
    assert trunk.stem.channels == described["encoder_dims"]
    assert trunk.stem.output_width == described["out_of_trunk"]
    assert encoder.config.embedding_dim == described["cls_dim"]


@torch.no_grad()
def test_centres_trunk_and_embedding_equal_the_original(encoder, recorded):
    points = recorded["in.Point"].float()
    centers, _ = group_points(points, encoder.config.trunks["point"].stem)
    assert torch.equal(centers, recorded["out.point.centers"])
    stages = encoder.stages("point", points)
    pooled = encoder.trunks["point"].pool(stages.trunk_tokens)
    assert relative_error(pooled[:, 0], recorded["out.point.encoder"]) <= LIMIT
    assert relative_error(stages.embedding[:, 0], recorded["out.point.embedding"]) <= LIMIT


@torch.no_grad()
def test_every_cloud_alone_equals_the_original(encoder, recorded):
    for cloud, expected in zip(recorded["in.Point"].float(), recorded["out.point.embedding"], strict=True):
        assert relative_error(encoder({"point": cloud[None]})["point"][0, 0], expected) <= LIMIT


@torch.no_grad()
def test_head_outputs_equal_the_original(folders, encoder, recorded):
    inputs = load_file(folders[0] / "io.safetensors")
    inputs |= {"in.point": recorded["in.Point"], "in.text_long": recorded.get("in.TextLong")}
    errors = {}
    for key in recorded:
        case = key.removeprefix("out.prenorm.")
        modality = MODALITY.get(case, case)
        if case == key or inputs.get(f"in.{case}") is None or modality not in encoder.modalities:
            continue
        tensor = inputs[f"in.{case}"]
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        errors[case] = relative_error(encoder.head_outputs({modality: tensor})[modality][:, 0], recorded[key])
    assert "point" in errors
    assert {case: error for case, error in errors.items() if not error <= LIMIT} == {}


def test_the_published_file_comes_back_byte_for_byte(published, encoder):
    for exported in (to_official(encoder.state_dict()), to_official(from_official(published))):
        assert set(exported) == set(published)
        for key, tensor in published.items():
            assert (exported[key].dtype, exported[key].shape) == (tensor.dtype, tensor.shape)
            assert exported[key].numpy().tobytes() == tensor.numpy().tobytes(), key
    assert sum(tensor.dtype == torch.int64 for tensor in published.values()) == 2  # batches that batch norm has seen


def test_a_trunk_of_points_alone_needs_only_its_own_keys(published, encoder):
    own = {key: tensor for key, tensor in published.items() if ".point." in key or key.startswith("point_trunk.")}
    alone = ImageBindEncoder(encoder.config, modalities=["point"])
    alone.load_state_dict(from_official(own))
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in alone.state_dict().items())
