"""The tiny folders, made once; tests that break one break a copy."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import folders  # noqa: E402

from adapter_llm.pipeline import Pipeline  # noqa: E402


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    folders.save_decoder(folder)
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory, decoder):
    """A weights folder, float32, and the model it was saved from."""
    folder = tmp_path_factory.mktemp("weights")
    return folder, folders.save_weights(folder, decoder)


@pytest.fixture(scope="session")
def weights(saved):
    return saved[0]


@pytest.fixture
def copy(weights, tmp_path):
    """A weights folder to break."""
    return Path(shutil.copytree(weights, tmp_path / "weights"))


@pytest.fixture(scope="session")
def pipe(weights, decoder):
    return Pipeline.from_pretrained(weights, llm=decoder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Picture files of different shapes."""
    folder = tmp_path_factory.mktemp("photos")
    sizes = [(50, 50), (90, 40), (40, 120), (300, 200), (64, 48)]
    paths = [folder / f"{seed}.png" for seed in range(len(sizes))]
    for seed, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        folders.picture(seed, *size).save(path)
    return paths
