"""PATH[:WEIGHT]: what is a weight and what belongs to the name."""

import math
import os

import pytest
from PIL import Image

from adapter_llm.cli import open_images, parse_media
from imagebind_encoder import ImageConfig, MediaError, load_image

DATA = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize("argument, source, weight", [
    ("a.jpg", "a.jpg", 1), ("a.jpg:0.7", "a.jpg", 0.7), ("a.jpg:2", "a.jpg", 2), ("a.jpg:.5", "a.jpg", 0.5),
    ("a.jpg:1e-2", "a.jpg", 0.01), ("a.jpg:+3.", "a.jpg", 3), ("a.jpg:0", "a.jpg", 0),
    ("a.jpg:", "a.jpg:", 1), ("a.jpg:x", "a.jpg:x", 1), ("a.jpg:0,5", "a.jpg:0,5", 1), ("a:b.jpg", "a:b.jpg", 1),
    (":0.5", ":0.5", 1), ("12:30.jpg:0.5", "12:30.jpg", 0.5), ("", "", 1),
    ("https://host/a.jpg", "https://host/a.jpg", 1), ("https://host/a.jpg:0.5", "https://host/a.jpg", 0.5),
    ("http://host:8080/a.jpg", "http://host:8080/a.jpg", 1), ("http://host:8080/a.jpg:2", "http://host:8080/a.jpg", 2),
    ("http://host:8080", "http://host:8080", 1), ("HTTP://host:80", "HTTP://host:80", 1),
    ("http://user:1@host/a.jpg", "http://user:1@host/a.jpg", 1),
    (DATA, DATA, 1), (DATA + ":0.25", DATA, 0.25), ("data:5", "data", 5),
    ("C:\\a.jpg", "C:\\a.jpg", 1), ("C:\\a.jpg:0.5", "C:\\a.jpg", 0.5), ("C:5", "C:5", 1),
    ("C:/a.jpg:3", "C:/a.jpg", 3),
])  # fmt: skip
def test_weights_are_told_from_names(tmp_path, monkeypatch, argument, source, weight):
    monkeypatch.chdir(tmp_path)
    assert parse_media(argument) == (source, weight)


@pytest.mark.skipif(os.name == "nt", reason="such names do not exist there")
def test_an_existing_file_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg:0.5").touch()
    assert parse_media("a.jpg:0.5") == ("a.jpg:0.5", 1)
    assert parse_media("a.jpg:0.5:2") == ("a.jpg:0.5", 2)
    (tmp_path / "C").touch()
    assert parse_media("C:5") == ("C", 5)


@pytest.mark.parametrize("tail", ["-1", "-0.5", "nan", "inf", "-inf", "1e999", "Infinity"])
def test_impossible_weights_are_refused(tail):
    with pytest.raises(ValueError, match=f"the weight of 'a.jpg' is {tail}; it must be a number from 0 up"):
        parse_media(f"a.jpg:{tail}")


def test_opened_pictures_are_what_the_source_would_have_been(tmp_path):
    """Whether EXIF counts is decided by the model's config, later."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.radial_gradient("L").resize((64, 48)).convert("RGB").save(path, exif=exif)
    ((image, weight),) = open_images([(str(path), 0.5)])
    assert weight == 0.5 and math.prod(image.size) == 64 * 48
    for orient in (True, False):
        config = ImageConfig(size=20, orient=orient)
        assert load_image(image, config).equal(load_image(path, config))
    assert not load_image(image, ImageConfig(size=20)).equal(load_image(image, ImageConfig(size=20, orient=False)))


def test_all_pictures_are_read_at_once(tmp_path):
    Image.effect_noise((40, 40), 50).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    with pytest.raises(MediaError, match=r"cut.png"):
        open_images([(str(tmp_path / "good.png"), 1.0), (str(tmp_path / "cut.png"), 1.0)])
