"""Pictures against the recorded pixels of the original, bit for bit."""

import json

import numpy
import pytest
import torch
from safetensors.torch import load_file

from imagebind_encoder import ImageConfig, load_image, open_image
from imagebind_encoder.media import fit_image

CONFIG = ImageConfig(orient=False)


@pytest.fixture(scope="module")
def folder(golden):
    if not (golden / "preprocess" / "images.safetensors").exists():
        pytest.skip(f"no pictures in {golden}")
    return golden / "preprocess"


def test_pixels_and_tensor_equal_the_original(folder):
    described = json.loads((folder / "preprocess.json").read_text())["images"]
    recorded = load_file(folder / "images.safetensors")
    assert described
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CONFIG.mean, CONFIG.std))
    for name, entry in described.items():
        path, expected = folder / entry["file"], recorded[f"{name}.imagebind_uint8"]
        image = fit_image(open_image(path, orient=False), CONFIG)
        assert torch.equal(torch.from_numpy(numpy.array(image)).permute(2, 0, 1), expected), name
        tensor = load_image(path, CONFIG)
        assert tensor.dtype == torch.float32 and tensor.is_contiguous()
        assert torch.equal(tensor, (expected.float() / 255 - mean) / std), name
