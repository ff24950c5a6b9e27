"""Files that cost more than they look: refused before they are decoded, in a sentence, and quickly."""

import contextlib
import time

import pytest
from hostile_files import (
    animation,
    film,
    film_that_claims,
    fragment_that_claims,
    jpeg_of_scans,
    jpeg_that_claims,
    picture,
    png,
    silence,
    sound,
    webp_and_pcd,
    webp_that_claims,
    with_bytes,
    yuv4mpeg,
)

from adapter_llm.strangers import headers, probe
from adapter_llm.strangers.headers import MAX_SCANS, PICTURES, check_header
from adapter_llm.strangers.limits import MediaLimits
from adapter_llm.strangers.probe import look
from imagebind_encoder.media.source import MediaError

LIMITS = MediaLimits(max_pixels=1000, max_frame_pixels=2000, max_seconds=90.0, reading_seconds=20.0)

linux = pytest.mark.skipif(not probe.STATUS.exists(), reason="the system does not tell what a process has in memory")


def refused(keyword, data, limits=LIMITS):
    with pytest.raises(MediaError) as error:
        check_header(keyword, data, limits)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("format", PICTURES)
def test_pictures_that_pass(format):
    assert check_header("image", picture(format), LIMITS) == 63


def test_pictures_of_phones_pass():
    """Of two pictures in one file: what the format is called is not JPEG then."""
    from PIL import Image

    data = picture("MPO", save_all=True, append_images=[Image.new("RGB", (9, 7))])
    assert check_header("image", data, LIMITS) == 63


HUGE = {
    "png": png(100_000, 100_000),
    "png that warns": png(10_000, 10_000),
    "png just above": png(1001, 1),
    "jpeg": jpeg_that_claims(65_500, 65_500),
    "webp": webp_that_claims(16_383, 16_383),
    "gif": with_bytes(picture("GIF"), 6, b"\xff\xff\xff\xff"),
    "gif with a frame beyond its screen": with_bytes(animation("GIF"), 6, b"\x01\x00\x01\x00").replace(
        b"\x2c\0\0\0\0\x09\0\x07\0", b"\x2c\xf0\xff\xf0\xff\x09\0\x07\0"
    ),
    "bmp": with_bytes(picture("BMP"), 18, (60_000).to_bytes(4, "little") * 2),
    "bmp upside down": with_bytes(
        picture("BMP"), 18, (60_000).to_bytes(4, "little") + (-60_000).to_bytes(4, "little", signed=True)
    ),
}


@pytest.mark.parametrize("data", HUGE.values(), ids=list(HUGE))
def test_pictures_of_too_many_pixels(data):
    assert len(data) < 5000
    assert "pixels" in refused("image", data)


def test_pixels_up_to_the_limit():
    assert check_header("image", png(1000, 1, bytes(1001)), LIMITS) == 1000


def test_a_jpeg_of_many_scans():
    """Each takes as long as a picture of its size, and few bytes: hours in a megabyte."""
    limits = MediaLimits()
    assert check_header("image", jpeg_of_scans(MAX_SCANS), limits) == 64 * 64
    assert f"JPEG of {MAX_SCANS + 1} scans" in refused("image", jpeg_of_scans(MAX_SCANS + 1), limits)


OTHER = {
    "TIFF": picture("TIFF"),
    "EPS": picture("EPS"),
    "ICO": picture("ICO", (16, 16)),
    "PPM": picture("PPM"),
    "TGA": picture("TGA"),
    "JPEG2000": picture("JPEG2000"),
    "AVIF": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B" + bytes(100),
    "PDF": picture("PDF"),
    "PSD": b"8BPS\0\1" + bytes(100),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "HTML": b"<!DOCTYPE html><html></html>",
    "ZIP": b"PK\3\4" + bytes(100),
    "NumPy": b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
    "pickle": b"\x80\4cos\nsystem\n(S'true'\ntR.",
    "a path": b"/etc/passwd",
    "a URL": b"http://127.0.0.1/",
    "nothing": b"",
    "noise": bytes(range(256)),
    "half a PNG": picture()[:20],
}


@pytest.mark.parametrize("data", OTHER.values(), ids=list(OTHER))
def test_what_is_no_picture_for_us(data):
    assert "is no picture that can be read; give PNG, JPEG" in refused("image", data)


def test_a_picture_of_two_formats():
    assert "two formats at once" in refused("image", webp_and_pcd())


FILMS = [film(), film(format="matroska"), film(9, format="mpegts", codec="mpeg2video"), animation("GIF")]


def test_films_and_recordings_that_pass():
    assert check_header("video", film(), LIMITS) == 0
    assert check_header("audio", sound(1), LIMITS) == 0


@pytest.mark.parametrize("data", FILMS)
def test_what_is_found_in_a_film(data):
    found = look(data, "video")
    assert (found["width"], found["height"]) in ((48, 32), (9, 7)) and 0 < found["seconds"] < 2


@pytest.mark.parametrize("data, seconds", [(sound(1), 1.0), (silence(60), 60.0), (film(), 0.3)])
def test_what_is_found_in_a_recording(data, seconds):
    found = look(data, "audio")
    assert found["seconds"] == pytest.approx(seconds, abs=0.1) and found["width"] == 0


def test_animations_that_pass():
    assert check_header("video", animation(), LIMITS) == 0


CLAIMS = {
    "table": film_that_claims(50_000_000),
    "tables": film_that_claims(3_000_000, 5),
    "fragment": fragment_that_claims(50_000_000),
}


@linux
@pytest.mark.parametrize("data", CLAIMS.values(), ids=list(CLAIMS))
def test_kilobytes_that_would_fill_gigabytes(data, monkeypatch):
    monkeypatch.setattr(headers, "PROBE_MEMORY", 100 * 2**20)
    assert len(data) < 5000
    before = probe._peak()
    assert "takes too long or too much memory to open" in refused("video", data)
    assert probe._peak() - before < 50 * 2**20  # of this process


@pytest.mark.parametrize("data", [fragment_that_claims(2**32 - 1), film_that_claims(2**31)])
def test_claims_that_are_absurd_end_soon(data):
    """The library itself refuses some, and takes others for empty."""
    begun = time.monotonic()
    with contextlib.suppress(MediaError):
        check_header("video", data, LIMITS)
    assert time.monotonic() - begun < 10


LARGE = {
    "mp4": film(size=(48, 48)),
    "webp": webp_that_claims(16_383, 5000),
    "yuv4mpeg": yuv4mpeg(5000, 5000),
}


@pytest.mark.parametrize("data", LARGE.values(), ids=list(LARGE))
def test_films_of_large_frames(data):
    message = refused("video", data)
    assert "frames of " in message and "give at most 2000 pixels" in message


def test_films_and_recordings_that_are_long():
    slow = film(times=[0, 1000, 7_200_000], format="matroska")
    assert "lasts 7200 seconds; give at most 90" in refused("video", slow)
    long = silence(600)
    assert len(long) < 200_000 and "lasts 600 seconds; give at most 90" in refused("audio", long)
    assert "lasts 91 seconds" in refused("audio", sound(91))


FOREIGN = {
    "playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "playlist of the web": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "dash": b"<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1/</BaseURL></MPD>",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 49170 RTP/AVP 31\n",
    "picture": picture(),
    "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nwords\n",
    "lavfi": b"color=c=red:s=100000x100000",
    "nothing": b"",
    "zeros": bytes(100_000),
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=list(FOREIGN))
def test_what_is_no_film(data):
    assert "is no film" in look(data, "video")["error"]
    assert "is no recording" in look(data, "audio")["error"]


def test_what_the_probe_says_is_said():
    assert "is no film" in refused("video", FOREIGN["playlist"])
    assert "is no recording" in refused("audio", FOREIGN["picture"])


def test_a_picture_that_does_not_move_is_left_to_the_loader():
    assert check_header("video", picture("WEBP"), LIMITS) == 0
