"""Every way a picture can come in, and every way it can be unreadable."""

import base64
import io
import os
import pathlib

import httpx
import numpy
import pytest
import torch
from PIL import Image

from imagebind_encoder import ImageConfig, MediaError, load_image, open_image
from imagebind_encoder.media import Limits, fetch_url, fit_image, read_source
from imagebind_encoder.media import image as image_module
from imagebind_encoder.media.source import describe

CONFIG = ImageConfig(size=20)


@pytest.fixture
def pixels():
    return numpy.random.default_rng(3).integers(0, 256, (37, 53, 3), dtype=numpy.uint8)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def png(pixels):
    return encoded(Image.fromarray(pixels))


@pytest.fixture
def path(tmp_path, png):
    (tmp_path / "picture.png").write_bytes(png)
    return tmp_path / "picture.png"


def same(image, pixels):
    return image.mode == "RGB" and numpy.array_equal(numpy.array(image), pixels)


def test_all_sources_give_the_same_picture(path, png, pixels):
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    sources = [path, str(path), png, bytearray(png), memoryview(png), uri, Image.fromarray(pixels), pixels]
    sources += [torch.from_numpy(pixels).permute(2, 0, 1), pixels[::-1][::-1]]
    expected = load_image(path, CONFIG)
    assert expected.shape == (3, 20, 20)
    for source in sources:
        assert same(open_image(source), pixels), type(source)
        assert torch.equal(load_image(source, CONFIG), expected), type(source)


def test_urls_go_through_the_given_fetch(png, pixels):
    asked = []

    def fetch(url):
        asked.append(url)
        return png

    for source in ("https://example.org/a.png", "HTTP://example.org/a.png", pathlib.Path("https://example.org/a.png")):
        assert same(open_image(source, fetch=fetch), pixels)
    assert asked == ["https://example.org/a.png", "HTTP://example.org/a.png", "https://example.org/a.png"]


def test_percent_encoded_and_wrapped_data_uris(png, pixels):
    text = base64.encodebytes(png).decode()
    assert same(open_image("data:image/png;charset=x;BASE64," + text.replace("+", "%2B")), pixels)
    assert read_source("data:,a%20b") == b"a b"


def test_given_picture_is_not_changed(pixels):
    image = Image.fromarray(pixels).convert("P")
    image.info["transparency"] = bytes(range(256))
    load_image(image, CONFIG)
    assert image.mode == "P" and "transparency" in image.info
    array = pixels.copy()
    load_image(array, CONFIG)
    assert numpy.array_equal(array, pixels)


def test_alpha_is_dropped_not_blended(pixels):
    alpha = numpy.dstack([pixels, numpy.zeros((37, 53), numpy.uint8)])
    assert same(open_image(encoded(Image.fromarray(alpha))), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_modes_are_converted(pixels, mode):
    image = Image.fromarray(pixels)
    for step in {"PA": ["P"], "RGBa": ["RGBA"], "LA": ["L"]}.get(mode, []) + [mode]:
        image = image.convert(step)
    assert same(open_image(image), numpy.array(image.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours():
    red = Image.new("RGB", (16, 16), (200, 30, 30))
    opened = numpy.array(open_image(encoded(red.convert("CMYK"), "JPEG", quality=95)))
    assert numpy.abs(opened.astype(int) - (200, 30, 30)).max() < 12


def test_sixteen_bit_grey_is_scaled(tmp_path):
    deep = numpy.array([[0, 128, 129], [257, 32768, 65535]], dtype=numpy.uint16)
    expected = numpy.repeat(numpy.array([[0, 0, 1], [1, 128, 255]], numpy.uint8)[..., None], 3, axis=2)
    assert same(open_image(encoded(Image.fromarray(deep))), expected)
    assert same(open_image(Image.fromarray(deep.astype(numpy.int32))), expected)
    assert same(open_image(encoded(Image.fromarray(deep.astype(">u2")), "TIFF")), expected)


def test_deep_grey_without_a_known_white_is_refused():
    for values in (numpy.array([[70000]], numpy.int32), numpy.array([[-1]], numpy.int32), numpy.ones((1, 1), "f4")):
        with pytest.raises(MediaError, match="whose white is unknown; save it as 8-bit"):
            open_image(Image.fromarray(values))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animations_give_the_first_frame(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert same(open_image(data), numpy.array(frames[0]))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation(format):
    wide = Image.new("RGB", (30, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(wide, format, exif=exif)
    assert open_image(data).size == (10, 30)
    assert open_image(data, orient=False).size == (30, 10)
    upright, asis = (load_image(data, ImageConfig(size=20, orient=orient)) for orient in (True, False))
    assert upright.shape == asis.shape


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_hide_the_picture():
    data = encoded(Image.new("RGB", (30, 10), "red"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\0")
    assert open_image(data).size == (30, 10)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (20000, 100), (3, 90001), (224, 224), (223, 225)])
@pytest.mark.parametrize("crop", ["center", "squash"])
def test_any_proportion_fits(size, crop):
    image = Image.new("RGB", size, (10, 200, 30))
    fitted = fit_image(image, ImageConfig(crop=crop))
    assert fitted.size == (224, 224)
    assert fitted.getextrema() == ((10, 10), (200, 200), (30, 30))


def test_box_path_for_threads_equals_the_plain_one(monkeypatch):
    image = Image.fromarray(numpy.random.default_rng(5).integers(0, 256, (31, 700, 3), dtype=numpy.uint8))
    plain = numpy.array(fit_image(image, CONFIG)).astype(int)
    monkeypatch.setattr(image_module, "MAX_RESIZED_PIXELS", 1)
    boxed = numpy.array(fit_image(image, CONFIG)).astype(int)
    assert numpy.abs(plain - boxed).max() <= 1


def test_squash_keeps_the_edges_that_center_cuts():
    image = Image.new("RGB", (60, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    assert numpy.array(fit_image(image, CONFIG)).max() == 0
    assert numpy.array(fit_image(image, ImageConfig(size=20, crop="squash")))[:, 0].min() == 255


def refused(source, message, **options):
    with pytest.raises(MediaError, match=message) as caught:
        load_image(source, CONFIG, **options)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path, png):
    refused(tmp_path / "absent.png", r"there is no file .*absent\.png'; check the path")
    refused(tmp_path, "is a directory; give the files in it")
    (tmp_path / "empty.jpg").touch()
    refused(tmp_path / "empty.jpg", r"empty\.jpg' is empty; check")
    (tmp_path / "text.jpg").write_text("hello")
    refused(tmp_path / "text.jpg", r"text\.jpg' is not a picture that can be read; give a JPEG")
    (tmp_path / "cut.png").write_bytes(png[: len(png) // 2])
    refused(tmp_path / "cut.png", r"cut\.png' is broken or cut off .*; copy or download it again")
    refused("x" * 5000, "cannot be read as a file .*; check the path|there is no file")
    refused("a\0b.png", "cannot be read as a file|there is no file")
    refused(b"/a/path", "7 bytes is not a picture")


def test_special_files_are_not_read(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file; copy it into one")


def test_files_without_permission(path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", denied)  # the mode bits do not stop root
    refused(path, "may not be read by this user; change its permissions")


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_truncated_jpeg(pixels, share):
    data = encoded(Image.fromarray(pixels), "JPEG")
    refused(data[: int(len(data) * share)], "broken or cut off|not a picture")


@pytest.mark.parametrize("uri, message", [
    ("data:image/png;base64", "has no comma; write data:image/png;base64"),
    ("data:image/png;base64,abc", "not valid base64 .*; encode it again"),
    ("data:image/png;base64,!!!!", "not valid base64"),
    ("data:image/png;base64,", "is empty"),
    ("data:image/png;base64,aGVsbG8=", "not a picture"),
])  # fmt: skip
def test_malformed_data_uris(uri, message):
    refused(uri, message)


@pytest.mark.parametrize("source, message", [
    (5, "an object of type int is no picture; give a path, URL"),
    (None, "type NoneType is no picture"),
    (b"", "0 bytes is empty"),
    (numpy.zeros((3, 3), numpy.float32), "type float32 is no picture; give uint8"),
    (numpy.zeros((3, 3, 4), numpy.uint8), r"shape \(3, 3, 4\)"),
    (numpy.zeros((0, 3, 3), numpy.uint8), "3 x 0 pixels; give 1 to"),
    (torch.zeros(3, 4, 4), "torch.float32 is no picture; give uint8"),
    (torch.zeros(4, 4, 3, dtype=torch.uint8), r"shape \(4, 4, 3\)"),
    (Image.new("RGB", (0, 5)), "0 x 5 pixels"),
    (Image.new("La", (2, 2)), "colour mode La; save it as RGB"),
])  # fmt: skip
def test_unsupported_objects(source, message):
    refused(source, message)


def test_pixel_limit_holds_before_decoding(png, pixels, monkeypatch):
    monkeypatch.setattr(image_module, "MAX_PIXELS", 37 * 53 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for source in (png, pixels, Image.fromarray(pixels)):
        refused(source, "53 x 37 pixels; give 1 to 1960 pixels")


def test_pillows_own_limit_is_one_sentence_too(png, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    refused(png, "more than .* pixels; make it smaller")


def test_source_of_another_type():
    with pytest.raises(MediaError, match="an object of type list is no media source; give a path"):
        read_source([])


def test_byte_limit(path, png):
    for source in (path, png):
        with pytest.raises(MediaError, match="larger than the limit of 100 bytes; give a smaller file"):
            read_source(source, Limits(max_bytes=100))


def serve(status=200, content=b"", headers=None, error=None):
    def respond(request):
        if error is not None:
            raise error
        return httpx.Response(status, content=content, headers=headers)

    return lambda url: fetch_url(url, Limits(max_bytes=100_000, timeout=5), httpx.MockTransport(respond))


def test_download(png, pixels):
    assert same(open_image("https://example.org/a.png", fetch=serve(content=png)), pixels)


@pytest.mark.parametrize("answer, message", [
    ({"status": 404}, r"'https://example.org/a.png' answered with status 404; check the address"),
    ({"status": 500}, "status 500"),
    ({"content": b"<html>", "headers": {"content-type": "text/html; charset=utf-8"}}, "is a web page"),
    ({"content": b"%PDF"}, "is not a picture"),
    ({"content": b""}, "is empty"),
    ({"content": bytes(100_001)}, "larger than the limit of 100000 bytes"),
    ({"error": httpx.ConnectError("no route")}, r"cannot be reached \(no route\); check the address and the conn"),
    ({"error": httpx.ReadTimeout("")}, "took longer than 5 s; try again"),
    ({"status": 302, "headers": {"location": "https://example.org/a.png"}}, "cannot be reached .*redirects"),
    ({"status": 302, "headers": {"location": "file:///etc/passwd"}}, "cannot be reached"),
])  # fmt: skip
def test_failed_downloads(answer, message):
    refused("https://example.org/a.png", message, fetch=serve(**answer))


def test_address_that_is_none():
    refused("http://", "cannot be reached", fetch=lambda url: fetch_url(url))


def test_slow_download_ends_at_the_deadline(monkeypatch):
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr("imagebind_encoder.media.source.time.monotonic", lambda: next(clock))

    class Drip(httpx.SyncByteStream):
        def __iter__(self):
            while True:
                yield b"x"

    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Drip()))
    with pytest.raises(MediaError, match="took longer than 5 s"):
        fetch_url("https://example.org/a.png", Limits(timeout=5), transport)


def test_a_long_path_keeps_its_files_name():
    """It is what the reader looks for."""
    long, uri = "/a folder with a name" * 9 + "/holiday.jpg", "data:image/png;base64," + "A" * 900
    for source, kept in ((long, "holiday.jpg'"), (pathlib.Path(long), "holiday.jpg'"), (uri, "A'")):
        assert describe(source).endswith(kept) and len(describe(source)) < 90
    assert describe(uri).startswith("'data:image/png")
    assert describe("short.jpg") == "'short.jpg'"
