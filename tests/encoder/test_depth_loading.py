"""Depth: the formula, every unit and source, holes, and what cannot be known."""

import base64
import io

import numpy
import pytest
import torch
from PIL import Image

from imagebind_encoder import ConfigError, DepthConfig, MediaError
from imagebind_encoder.media import plane
from imagebind_encoder.media.depth import fill_holes, load_depth

ROWS, COLUMNS = 30, 40
SIZE = (ROWS, COLUMNS)
CONFIG = DepthConfig(focal=35.0)


@pytest.fixture
def millimetres():
    return numpy.random.default_rng(2).integers(450, 9000, SIZE).astype(numpy.uint16)


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    numpy.save(buffer, array)
    return buffer.getvalue()


def expected(metres, config=CONFIG):
    """baseline * focal / distance, written out."""
    distances = numpy.clip(metres * config.distance_scale, config.min_depth, config.max_depth)
    scaled = numpy.clip(config.baseline * config.focal / distances, 0.01, config.max_disparity) / config.max_disparity
    return torch.from_numpy((scaled - config.mean) / config.std).float()[None]


def close(found, wanted, tolerance=1e-5):
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_every_source_of_the_same_distances(millimetres, tmp_path):
    wanted = expected(millimetres / 1000)
    metres = (millimetres / 1000).astype(numpy.float32)
    (tmp_path / "a.png").write_bytes(encode(millimetres))
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), encode(millimetres), bytearray(encode(millimetres, "TIFF"))]
    sources += ["data:image/png;base64," + base64.b64encode(encode(millimetres)).decode()]
    sources += [millimetres, millimetres.astype(">u2"), millimetres.astype(numpy.int32), npy(millimetres)]
    sources += [Image.fromarray(millimetres), Image.fromarray(millimetres.astype(numpy.int32))]
    sources += [torch.from_numpy(millimetres.astype(kind)) for kind in (numpy.int32, numpy.int64, numpy.uint16)]
    sources += [metres, metres.astype(numpy.float64), metres[None], metres[..., None], npy(metres)]
    sources += [encode(metres, "TIFF")]
    sources += [Image.fromarray(metres), torch.from_numpy(metres), torch.from_numpy(metres)[None].requires_grad_()]
    for source in sources:
        close(load_depth(source, CONFIG, SIZE), wanted)
    close(load_depth("https://a.b/c.png", CONFIG, SIZE, fetch=lambda url: encode(millimetres)), wanted)


@pytest.mark.parametrize("form", ["array", "file"])
def test_a_said_unit_counts(millimetres, form):
    millimetres = millimetres.clip(max=6000)  # what max_depth cuts is disparity that nothing cuts
    metres = millimetres / 1000
    wanted = expected(metres)
    give = (lambda values: npy(values)) if form == "file" else (lambda values: values)
    for unit, values in (
        ("millimetres", millimetres.astype(numpy.float64)),
        ("metres", metres),
        ("disparity", CONFIG.baseline * CONFIG.focal / metres),
    ):
        close(load_depth(give(values), DepthConfig(focal=35.0, unit=unit), SIZE), wanted)
    near = numpy.full(SIZE, 0.25)
    close(load_depth(give(near), DepthConfig(focal=35.0, unit="metres"), SIZE), expected(near))
    coarse = (millimetres >> 8).astype(numpy.uint8) + 1
    close(load_depth(give(coarse), DepthConfig(focal=35.0, unit="metres"), SIZE), expected(coarse.astype(float)))


def test_colours_that_are_all_grey_are_grey():
    grey = numpy.random.default_rng(6).integers(1, 256, SIZE).astype(numpy.uint8)
    config = DepthConfig(unit="disparity")
    wanted = load_depth(grey, config, SIZE)
    rgb = numpy.stack([grey] * 3, axis=-1)
    for source in (rgb, encode(rgb), torch.from_numpy(rgb).permute(2, 0, 1)):
        close(load_depth(source, config, SIZE), wanted)


def test_the_numbers_of_the_config(millimetres):
    metres = millimetres / 1000
    for changes in (
        {"baseline": 0.095},
        {"focal": 51.0},
        {"distance_scale": 1.0},
        {"min_depth": 10.0, "max_depth": 12.0},
        {"max_disparity": 0.05},
        {"mean": 0.2, "std": 0.5},
    ):
        config = DepthConfig(**{"focal": 35.0, **changes})
        close(load_depth(millimetres, config, SIZE), expected(metres, config))


def test_defaults_put_rooms_around_zero():
    """A wall 2 to 3 m from a Kinect is what the published mean and standard deviation are of."""
    wall = numpy.linspace(1200, 4000, 480 * 640).reshape(480, 640).astype(numpy.uint16)
    found = load_depth(wall)
    assert found.shape == (1, 224, 224)
    assert found.mean().abs() < 1
    assert 0.1 < found.std() < 2


def test_a_scene_is_the_same_at_any_resolution():
    """Disparity is counted as if every picture were as wide as those of the training data."""
    whole = load_depth(numpy.full((60, 80), 2.5), size=(6, 8))
    for shape in ((480, 640), (15, 20), (80, 60)):
        close(load_depth(numpy.full(shape, 2.5), size=(6, 8)), whole)


# holes


@pytest.mark.parametrize("hole", [0.0, numpy.nan, numpy.inf, -numpy.inf])
def test_holes_take_the_farther_neighbour(hole):
    metres = numpy.full(SIZE, 2.0)
    metres[:, 20:] = 5.0
    wanted = expected(metres)
    holed = metres.copy()
    holed[3:9, 15:20] = hole
    wanted[:, 3:9, 15:20] = expected(numpy.full((1, 1), 5.0))
    holed[12:14, :7] = holed[12:14, 30:] = hole  # at the edges there is one neighbour only
    holed[20:24] = hole  # and here only the rows above and below
    holed[-1] = hole
    close(load_depth(holed, CONFIG, SIZE), wanted)
    if hole == 0:
        close(load_depth((holed * 1000).astype(numpy.uint16), CONFIG, SIZE), wanted)


def test_filling_by_hand():
    values = numpy.array([[9, 1, 9, 9, 4, 9], [9, 9, 9, 9, 9, 9], [9, 9, 9, 9, 9, 9], [7, 9, 9, 9, 9, 5]], float)
    measured = numpy.array([[0, 1, 0, 0, 1, 0], [0] * 6, [0] * 6, [1, 0, 0, 0, 0, 1]], bool)
    top, bottom = [1, 1, 1, 1, 4, 4], [7, 5, 5, 5, 5, 5]
    assert fill_holes(values, measured).tolist() == [top, top, bottom, bottom]
    assert fill_holes(values, numpy.ones_like(measured)) is values


def test_no_disparity_is_far_away_and_no_hole():
    config = DepthConfig(unit="disparity")
    values = numpy.full(SIZE, 4.0)
    values[:, :20] = 0
    found = load_depth(values, config, SIZE)
    far, near = (0.01 / 75 - config.mean) / config.std, (0.5 / 75 - config.mean) / config.std
    close(found, torch.tensor([far] * 20 + [near] * 20).expand(1, *SIZE))
    values[:, :20] = numpy.nan
    close(load_depth(values, config, SIZE), torch.full((1, *SIZE), near))


# size


@pytest.mark.parametrize("shape", [(480, 640), (300, 100), (224, 224), (50, 60), (5, 4000)])
@pytest.mark.parametrize("size", [(224, 224), (60, 120), (33, 7)])
def test_any_shape_becomes_the_size(shape, size):
    found = load_depth(numpy.full(shape, 3.0), DepthConfig(focal=400.0), size)
    close(found, expected(numpy.full(size, 3.0), DepthConfig(focal=400.0)))


def test_resizing_is_the_mean_of_disparities():
    """Of all the pixels that a new one stands for, and nothing beyond them at an edge."""
    metres = numpy.full((4 * ROWS, 4 * COLUMNS), 2.0)
    metres[:, ::2] = 4.0
    wanted = (expected(numpy.array([[2.0]])) + expected(numpy.array([[4.0]]))) / 2
    close(load_depth(metres, CONFIG, SIZE), wanted.expand(1, *SIZE), 0.01)
    metres[:, : 2 * COLUMNS] = 5.0
    found = load_depth(metres, CONFIG, SIZE)
    assert found.min() >= expected(numpy.array([[5.0]])) - 1e-5
    assert found.max() <= expected(numpy.array([[2.0]])) + 1e-5


def test_the_middle_is_kept():
    metres = numpy.full((40, 100), 2.0)
    metres[:, 30:70] = 4.0
    close(load_depth(metres, CONFIG, (40, 40)), expected(numpy.full((40, 40), 4.0)))
    close(load_depth(metres.T, CONFIG, (40, 40)), expected(numpy.full((40, 40), 4.0)))


# what cannot be known, and broken files


@pytest.mark.parametrize(
    "source, words",
    [
        (numpy.full(SIZE, 2400.0), ["32-bit float", "up to 2400", "unit='millimetres'"]),
        (numpy.full(SIZE, 0.7), ["ends at 0.7", "scaled to [0, 1]", "DepthConfig(unit="]),
        (numpy.full(SIZE, 7, numpy.uint16), ["16-bit grey", "ends at 7", "too near for millimetres"]),
        (numpy.full(SIZE, 7, numpy.uint8), ["8-bit grey", "any unit", "DepthConfig(unit="]),
        (numpy.arange(192, dtype=numpy.uint8).reshape(8, 8, 3), ["colour picture", "16-bit PNG"]),
        (-numpy.ones(SIZE) * 2, ["negative values, down to -2"]),
        (numpy.zeros(SIZE, numpy.uint16), ["only holes"]),
        (numpy.full(SIZE, numpy.nan), ["only holes"]),
        (numpy.zeros((2, 3, 4, 5)), ["shape (2, 3, 4, 5)"]),
        (numpy.zeros((30, 40, 3)), ["shape (30, 40, 3)", "one plane"]),
        (numpy.zeros((0, 5)), ["5 x 0 pixels"]),
        (numpy.zeros(SIZE, bool), ["type bool"]),
        (numpy.zeros(SIZE, complex), ["type complex"]),
        (torch.zeros(SIZE, dtype=torch.bfloat16), ["bfloat16"]),
        (b"nothing", ["not a picture"]),
        (b"\x93NUMPY\1\0", ["no NumPy file"]),
        (npy(numpy.array([{}], dtype=object)), ["no NumPy file"]),
        (b"", ["is empty"]),
        ("nothing.png", ["no file"]),
        (7, ["type int is no picture"]),
    ],
)  # fmt: skip
def test_refusals(source, words):
    if isinstance(source, numpy.ndarray) and source.dtype == float and source.size and source.flat[0] == 2400:
        source = source.astype(numpy.float32)
    with pytest.raises(MediaError) as caught:
        load_depth(source)
    for word in words:
        assert word in str(caught.value)


def test_a_colour_map_is_refused_in_any_unit(tmp_path):
    colours = numpy.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(numpy.uint8)
    (tmp_path / "turbo.png").write_bytes(encode(colours))
    for unit in ("auto", "metres", "disparity"):
        with pytest.raises(MediaError, match=r"turbo\.png.* is a colour picture \(8-bit colour\)"):
            load_depth(tmp_path / "turbo.png", DepthConfig(unit=unit))


def test_cut_off_and_oversized_pictures(millimetres, monkeypatch):
    with pytest.raises(MediaError, match="broken or cut off"):
        load_depth(encode(millimetres)[:-600])
    monkeypatch.setattr(plane, "MAX_PIXELS", 1199)
    for source in (millimetres, encode(millimetres), Image.fromarray(millimetres)):
        with pytest.raises(MediaError, match="40 x 30 pixels; give 1 to 1199"):
            load_depth(source)


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": "feet"}, {"baseline": 0}, {"focal": -1.0}, {"focal": "auto"}, {"distance_scale": 0}, {"std": 0},
        {"min_depth": 60.0}, {"max_depth": float("inf")}, {"max_disparity": True}, {"mean": None},
    ],
)  # fmt: skip
def test_bad_configs(changes):
    (field,) = changes
    with pytest.raises(ConfigError, match=rf"DepthConfig\.{field}"):
        DepthConfig(**changes)
