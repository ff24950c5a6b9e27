"""Thermal pictures: grey of any depth, what looks grey, and what is false colour."""

import io

import numpy
import pytest
import torch
from PIL import Image

from imagebind_encoder import ConfigError, ImageConfig, MediaError, ThermalConfig
from imagebind_encoder.media.image import fit_image
from imagebind_encoder.media.thermal import load_thermal

SIZE = (30, 40)


@pytest.fixture
def grey():
    return numpy.random.default_rng(4).integers(0, 256, SIZE).astype(numpy.uint8)


@pytest.fixture
def counts():
    """What a 14-bit sensor gives: a narrow band."""
    return (7400 + numpy.random.default_rng(4).normal(size=SIZE).cumsum(axis=1) * 20).astype(numpy.uint16)


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def close(found, wanted, tolerance=1e-6):
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def unit(values):
    return torch.from_numpy(numpy.array(values, dtype=numpy.float32))[None]


def test_eight_bits_are_grey_from_0_to_1(grey, tmp_path):
    wanted = unit(grey / 255)
    (tmp_path / "a.png").write_bytes(encode(grey))
    rgb = numpy.stack([grey] * 3, axis=-1)
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), encode(grey), encode(rgb)]
    sources += [grey, rgb, grey[None], grey[..., None]]
    sources += [torch.from_numpy(grey), torch.from_numpy(grey)[None], torch.from_numpy(rgb).permute(2, 0, 1)]
    sources += [Image.fromarray(grey), Image.fromarray(rgb), Image.fromarray(grey).convert("LA")]
    sources += [Image.fromarray(rgb).convert("RGBA"), encode(Image.fromarray(grey).convert("P"))]
    for source in sources:
        close(load_thermal(source, size=SIZE), wanted)
    close(load_thermal("https://a.b/c.png", size=SIZE, fetch=lambda url: encode(grey)), wanted)
    assert load_thermal(grey).shape == (1, 224, 224)


def test_mean_and_std(grey):
    close(load_thermal(grey, ThermalConfig(mean=0.5, std=0.25), SIZE), unit((grey / 255 - 0.5) / 0.25), 1e-5)


def test_grey_with_the_noise_of_jpeg_is_grey(grey):
    smooth = Image.fromarray(grey).resize((90, 70), Image.Resampling.BICUBIC).convert("RGB")
    found = load_thermal(encode(smooth, "JPEG", quality=60), size=(70, 90))
    close(found, unit(numpy.asarray(smooth.convert("L")) / 255), 0.15)
    pixels = numpy.asarray(smooth).copy()
    pixels[:5, :5] = (255, 0, 0)  # a maker's mark
    assert load_thermal(pixels).shape == (1, 224, 224)


def test_false_colours_are_refused_unless_allowed(grey):
    ironbow = numpy.stack([grey, grey // 3, 255 - grey], axis=-1)
    for source in (ironbow, encode(ironbow), Image.fromarray(ironbow).convert("P")):
        with pytest.raises(MediaError, match=r"false-colour picture \(\d+% of it is coloured\).*colours='grey'"):
            load_thermal(source)
    wanted = unit(ironbow @ numpy.array([0.299, 0.587, 0.114]) / 255)
    close(load_thermal(ironbow, ThermalConfig(colours="grey"), SIZE), wanted, 1e-5)


def test_deep_pictures_take_their_own_range(counts):
    exact = ThermalConfig(clip=0.0)
    wanted = unit((counts - counts.min()) / (float(counts.max()) - counts.min()))
    celsius = counts / 100.0 - 50
    sources = [counts, encode(counts), encode(counts, "TIFF"), counts.astype(">u2"), celsius]
    for source in [*sources, encode(celsius.astype(numpy.float32), "TIFF")]:
        close(load_thermal(source, exact, SIZE), wanted, 1e-4)
    close(load_thermal(torch.from_numpy(celsius), exact, SIZE), wanted, 1e-4)


def test_dead_pixels_do_not_count(counts):
    usual = load_thermal(counts, ThermalConfig(clip=1.0), SIZE)
    broken = counts.copy()
    broken[0, 0], broken[9, 9] = 65535, 0
    found = load_thermal(broken, ThermalConfig(clip=1.0), SIZE)
    assert (found[0, 0, 0], found[0, 9, 9]) == (1, 0)
    found[0, 0, 0], found[0, 9, 9] = usual[0, 0, 0], usual[0, 9, 9]
    close(found, usual, 0.05)
    large = numpy.tile(counts, (4, 4))
    large[0, 0] = 65535
    assert load_thermal(large).mean() > 0.2  # and so it is by default


def test_full_range(counts):
    full = ThermalConfig(deep="full")
    close(load_thermal(counts, full, SIZE), unit(counts / 65535))
    close(load_thermal(counts.astype(numpy.int32), full, SIZE), unit(counts / 65535))
    close(load_thermal((counts / 65535), full, SIZE), unit(counts / 65535))
    for source, words in ((counts / 100.0, "from 7"), (-counts.astype(numpy.int32), "outside of 0 to 65535")):
        with pytest.raises(MediaError, match=words) as caught:
            load_thermal(source, full)
        assert "deep='stretch'" in str(caught.value)


@pytest.mark.parametrize("value", [numpy.uint8(0), numpy.uint16(7000), 21.5])
def test_one_temperature_everywhere_is_black(value):
    close(load_thermal(numpy.full((5, 9), value)), torch.zeros(1, 224, 224))


@pytest.mark.parametrize("shape", [(70, 50), (31, 97), (16, 16)])
def test_geometry_is_that_of_pictures(shape):
    """Shorter side first, middle cut out, bicubic: as `fit_image` does it, but in floats."""
    values = numpy.random.default_rng(1).uniform(0.2, 0.8, shape).astype(numpy.float32)
    wanted = fit_image(Image.fromarray(values), ImageConfig(size=24))
    close(load_thermal(values, ThermalConfig(deep="full"), (24, 24)), unit(wanted).clamp(0, 1), 1e-5)


def test_nothing_leaves_the_range(grey):
    found = load_thermal((grey > 128).astype(numpy.uint8) * 255)  # where bicubic swings over
    assert found.min() == 0
    assert found.max() == 1


@pytest.mark.parametrize(
    "source, words",
    [
        (numpy.array([[1.0, numpy.nan]]), ["not finite"]),
        (numpy.array([[1.0, numpy.inf]]), ["not finite"]),
        (numpy.zeros((4, 5, 2)), ["shape (4, 5, 2)"]),
        (b"GIF89a", ["not a picture"]),
        (b"", ["is empty"]),
        ("nothing.png", ["no file"]),
        (object(), ["type object is no picture"]),
    ],
)
def test_refusals(source, words):
    with pytest.raises(MediaError) as caught:
        load_thermal(source)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"mean": "0"}, {"std": 0}, {"deep": "auto"}, {"colours": "allow"}, {"clip": 50}, {"clip": -1}]
)
def test_bad_configs(changes):
    (field,) = changes
    with pytest.raises(ConfigError, match=rf"ThermalConfig\.{field}"):
        ThermalConfig(**changes)
