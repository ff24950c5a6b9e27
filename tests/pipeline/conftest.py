"""Copies of the tiny folders to break, and pictures."""

import shutil
from pathlib import Path

import folders
import pytest


@pytest.fixture
def copy(weights, tmp_path):
    """A weights folder to break."""
    return Path(shutil.copytree(weights, tmp_path / "weights"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Picture files of different shapes."""
    folder = tmp_path_factory.mktemp("photos")
    sizes = [(50, 50), (90, 40), (40, 120), (300, 200), (64, 48)]
    paths = [folder / f"{seed}.png" for seed in range(len(sizes))]
    for seed, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        folders.picture(seed, *size).save(path)
    return paths
