"""Retrieval against recorded numbers of the original, read from a golden folder.

Nothing here knows which cases or sizes the folder holds: a case with `knn` is one, whatever its name.
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from adapter_llm.model import mix
from adapter_llm.retrieval import FeatureIndex, RetrievalOptions, blend, generation_vector
from imagebind_encoder import Modality, load_official

LIMIT = 5e-5  # on max|difference| / rms(expected)
VISION_INPUTS = {"image", "video"}


@pytest.fixture(scope="module")
def folder(golden):
    if not (golden / "imagebind_llm" / "io.safetensors").exists():
        pytest.skip(f"no imagebind_llm data in {golden}")
    return golden / "imagebind_llm"


@pytest.fixture(scope="module")
def described(folder):
    return json.loads((folder / "cases.json").read_text())


@pytest.fixture(scope="module")
def recorded(folder):
    return load_file(folder / "io.safetensors")


@pytest.fixture(scope="module")
def index_file(folder, described):
    path = folder / described.get("knn", {}).get("file", "")
    if not path.is_file():
        pytest.skip(f"no stored vectors in {folder}")
    return path


@pytest.fixture(scope="module")
def index(index_file):
    return FeatureIndex.from_faiss(index_file)


@pytest.fixture(scope="module")
def encoder(golden):
    path = golden / "imagebind" / "imagebind_small.pth"
    if not (path.exists() and (path.parent / "io.safetensors").exists()):
        pytest.skip(f"no encoder in {golden}")
    arguments = json.loads((golden / "imagebind" / "config.json").read_text())["model_kwargs"]
    return load_official(path, heads={name: arguments.get(f"{name}_num_heads") for name in Modality})


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.square().mean().sqrt())


def options_of(case):
    names = {"cache_size": "neighbours", "cache_t": "sharpness", "cache_weight": "weight"}
    return RetrievalOptions(**{ours: case[theirs] for theirs, ours in names.items() if theirs in case})


def snake(name):
    """TextLong -> text_long."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def modality_of(name):
    word = snake(name).split("_")[0]
    return Modality("vision" if word in VISION_INPUTS else word)


@pytest.fixture(scope="module")
def mixed(golden, encoder, described, recorded):
    """A function from the inputs of a case to its mixed features (B, N, E).

    Where a folder has left the inputs out, or the encoder has no such modality, they are those recorded of a case
    with the same inputs and no index; None if there is no such case.
    """

    def of(inputs):
        features, rows, weights = [], [], []
        for name, entry in inputs.items():
            source, key, row = entry["where"]
            chosen = entry.get("rows", [row])
            stored, modality = load_file(golden / source / "io.safetensors"), modality_of(name)
            if key not in stored or modality not in encoder.modalities:
                cases = described["cases"].items()
                alike = [name for name, case in cases if case["inputs"] == inputs and not case["knn"]]
                return next((recorded[key] for key in map("out.{}.features".format, alike) if key in recorded), None)
            tensor = stored[key][chosen]
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            with torch.no_grad():
                features.append(encoder({modality: tensor})[modality])
            rows += range(len(chosen))
            weights += [float(entry["weight"])] * len(chosen)
        return mix(torch.cat(features), torch.tensor(rows), torch.tensor(weights), max(rows) + 1)

    return of


def test_the_index_file_holds_the_recorded_vectors(index, recorded, described):
    assert torch.equal(index.vectors(), recorded["in.knn_vectors"])
    assert (len(index), index.width) == (described["knn"]["n"], described["knn"]["dim"])


def test_the_index_file_is_written_again_byte_for_byte(index, index_file, tmp_path):
    index.to_faiss(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == index_file.read_bytes()
    index.save(tmp_path / "ours")
    FeatureIndex.load(tmp_path / "ours").to_faiss(tmp_path / "and again")
    assert (tmp_path / "and again").read_bytes() == index_file.read_bytes()


def test_features_of_every_case_equal_the_original(index, recorded, described, mixed):
    errors = {}
    for name, case in described["cases"].items():
        if f"out.{name}.features" in recorded:
            features = mixed(case["inputs"])
            if features is None:
                continue
            if case["knn"]:
                features = blend(features, index, options_of(case))
            errors[name] = relative_error(features, recorded[f"out.{name}.features"])
    if not errors:
        pytest.skip("no features are recorded whose inputs are here")
    assert {name: error for name, error in errors.items() if not error <= LIMIT} == {}


def test_cases_in_one_batch_are_the_cases_one_by_one(index, recorded, described, mixed):
    """The published code blends one sample alone."""
    alike = {}
    for name, case in described["cases"].items():
        if case["knn"] and f"out.{name}.features" in recorded:
            alike.setdefault(options_of(case), []).append(name)
    for options, names in alike.items():
        found = {name: mixed(described["cases"][name]["inputs"]) for name in names}
        names = [name for name in names if found[name] is not None]
        if not names:
            continue
        features = torch.cat([found[name] for name in names])
        for actual, name in zip(blend(features, index, options).split(1), names, strict=True):
            assert relative_error(actual, recorded[f"out.{name}.features"]) <= LIMIT, name


def test_image_generation_vectors_equal_the_original(index, recorded, described):
    """`out.image_generate.NAME` has the inputs of the case NAME, `NAME_knn` is blended with the default options."""
    errors = {}
    for key, expected in recorded.items():
        if not key.startswith("out.image_generate."):
            continue
        name = key.rpartition(".")[2]
        inputs = described["cases"][name.removesuffix("_knn")]["inputs"]
        outputs, weights = {}, []
        for source, entry in inputs.items():
            outputs[snake(source)] = recorded[f"out.prenorm.{snake(source)}"][entry["where"][2]][None, None]
            weights.append(float(entry["weight"]))
        vector = generation_vector(
            outputs, torch.zeros(len(weights), dtype=torch.long), torch.tensor(weights),
            index=index if name.endswith("_knn") else None,
        )  # fmt: skip
        errors[name] = relative_error(vector.view_as(expected), expected)
        wrong = F.normalize(vector, dim=-1).view_as(expected)
        assert relative_error(wrong, expected) > LIMIT  # the length is part of it
    if not errors:
        pytest.skip("no image-generation vectors are recorded")
    assert {name: error for name, error in errors.items() if not error <= LIMIT} == {}
