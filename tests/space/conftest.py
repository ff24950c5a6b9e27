"""The tiny encoder, and a folder with a few files of every kind."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import tiny_space as tiny

from adapter_llm.space.embedder import EncoderFolder


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    return tiny.save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def folder(weights):
    return EncoderFolder.find(weights)


@pytest.fixture(scope="session")
def embedder(folder):
    return folder.load("cpu")


@pytest.fixture
def media(tmp_path):
    """Eleven files of five kinds that suffixes tell, and some that are left alone."""
    place = tmp_path / "media"
    (place / "deep").mkdir(parents=True)
    for number in range(5):
        tiny.image(place / f"{number}.png", number, (40 + number, 30))
    tiny.image(place / "deep" / "b.jpg", 9)
    tiny.sound(place / "a.wav", 300)
    tiny.sound(place / "deep" / "b.wav", 500, 1.3)
    tiny.words(place / "a.txt", "a dog on the grass")
    tiny.motion(place / "a.csv", 3)
    tiny.film(place / "a.mp4", 4)
    (place / "notes.md").write_text("no media")
    (place / ".hidden.png").write_bytes(b"x")
    return place
