"""Content parts to bytes: what is understood, what is refused, and that nothing is taken for a path."""

import base64
import builtins
import io
import os
from pathlib import Path

import pytest
from hostile_files import film, picture, sound

from adapter_llm.serve import parts as parts_module
from adapter_llm.serve.errors import ApiError
from adapter_llm.serve.parts import MediaPart, load_parts, read_part, reading
from adapter_llm.strangers.limits import MediaLimits
from imagebind_encoder.media.source import MediaError

PNG = picture()
LIMITS = MediaLimits(max_bytes=len(PNG) * 5, max_parts=3, max_pixels=1000)
OPEN = MediaLimits(allow_urls=True, max_bytes=10_000)
WHERE = "messages[1].content[2]"


def uri(data=PNG, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def wrong(part):
    with pytest.raises(ApiError) as error:
        read_part(part, WHERE)
    assert error.value.status == 400 and len(str(error.value)) < 300
    return error.value


def refused(parts, limits=LIMITS, **options):
    with pytest.raises(ApiError) as error:
        load_parts(parts, limits, **options)
    assert error.value.status == 400 and len(str(error.value)) < 300 and "\n" not in str(error.value)
    return error.value


def test_a_text():
    assert read_part({"type": "text", "text": "What is this?"}, WHERE) == "What is this?"
    assert read_part({"type": "text", "text": "", "prompt_cache_breakpoint": {}}, WHERE) == ""


@pytest.mark.parametrize("url", [uri(), "https://example.org/x.png", "HTTP://example.org/x.png", "DATA:,words"])
@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_urls(kind, url):
    part = {"type": f"{kind}_url", f"{kind}_url": {"url": url}}
    assert read_part(part, WHERE) == MediaPart(kind, url, f"{WHERE}.{kind}_url.url")


@pytest.mark.parametrize("detail", ["auto", "low", "high", None])
def test_detail_says_nothing_here(detail):
    part = {"type": "image_url", "image_url": {"url": uri(), "detail": detail}}
    assert read_part(part, WHERE) == MediaPart("image", uri(), f"{WHERE}.image_url.url")


def test_input_audio():
    wav = sound(0.1)
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}}
    found = read_part(part, WHERE)
    assert (found.keyword, found.where) == ("audio", f"{WHERE}.input_audio.data")
    assert load_parts([found], MediaLimits()) == {"audio": [wav]}


WRONG = [
    ("words", WHERE, "must be a JSON object"),
    (None, WHERE, "must be a JSON object"),
    ([image(uri())], WHERE, "must be a JSON object"),
    ({}, f"{WHERE}.type", "is missing"),
    ({"type": "file", "file": {"file_id": "x"}}, f"{WHERE}.type", "must be one of text, image_url, input_audio"),
    ({"type": "image"}, f"{WHERE}.type", "must be one of"),
    ({"type": ["text"]}, f"{WHERE}.type", "must be one of"),
    ({"type": "text"}, f"{WHERE}.text", "is missing"),
    ({"type": "text", "text": ["a"]}, f"{WHERE}.text", "must be a text"),
    ({"type": "text", "text": "a", "path": "/etc/passwd"}, f"{WHERE}.path", "Unrecognized"),
    ({"type": "image_url"}, f"{WHERE}.image_url.url", "is missing"),
    ({"type": "image_url", "image_url": uri()}, f"{WHERE}.image_url", "must be a JSON object"),
    ({"type": "image_url", "image_url": {}}, f"{WHERE}.image_url.url", "is missing"),
    ({"type": "image_url", "image_url": {"url": 7}}, f"{WHERE}.image_url.url", "must be a text"),
    ({"type": "image_url", "image_url": {"url": {"path": "x"}}}, f"{WHERE}.image_url.url", "must be a text"),
    ({"type": "image_url", "image_url": {"url": uri(), "detail": "much"}}, f"{WHERE}.image_url.detail", "must be one"),
    ({"type": "image_url", "image_url": {"url": uri(), "path": "x"}}, f"{WHERE}.image_url.path", "Unrecognized"),
    ({"type": "image_url", "image_url": {"url": uri()}, "video_url": {}}, f"{WHERE}.video_url", "Unrecognized"),
    ({"type": "video_url", "video_url": {"url": uri(), "detail": "low"}}, f"{WHERE}.video_url.detail", "Unrecognized"),
    ({"type": "input_audio", "input_audio": {"format": "wav"}}, f"{WHERE}.input_audio.data", "is missing"),
    ({"type": "input_audio", "input_audio": {"data": "AA==", "format": 7}}, f"{WHERE}.input_audio.format", "a text"),
    ({"type": "input_audio", "input_audio": {"url": "x"}}, f"{WHERE}.input_audio.url", "Unrecognized"),
]


@pytest.mark.parametrize("part, place, why", WRONG)
def test_parts_that_are_wrong(part, place, why):
    error = wrong(part)
    assert error.param == place and why in str(error)


LOCAL = """
/etc/passwd ./x.png x.png ../../weights file:///etc/passwd FILE:/etc/passwd file://localhost/etc/passwd file:x C:\\x.png
\\\\host\\share\\x.png ftp://example.org/x.png ftps://e/x gopher://e/x s3://bucket/key gs://b/k unix:/run/x
~/.ssh/id_rsa data http: https: http:/etc/passwd https:/x http:x.png javascript:alert(1) blob:http://x/1 jar:file:///x rtsp://e/x
concat:/etc/passwd|x subfile,,start,0,end,9,,:/etc/passwd pipe:0 /dev/stdin /proc/self/environ data/image.png
""".split() + ["", " ", " data:,x", "\thttp://example.org/", "\0http://example.org/", "file\n:///etc/passwd"]


@pytest.mark.parametrize("url", LOCAL)
def test_what_is_neither_data_nor_web_is_refused(url):
    for kind in ("image", "video", "audio"):
        error = wrong({"type": f"{kind}_url", f"{kind}_url": {"url": url}})
        assert "must be a data: URI or an http(s) URL" in str(error)
        assert error.param == f"{WHERE}.{kind}_url.url"


@pytest.mark.parametrize("url", LOCAL)
def test_nor_is_it_opened_where_the_first_check_is_missing(url, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError(f"opened {args}")

    for holder in (builtins, io, os, Path):
        monkeypatch.setattr(holder, "open", fail)
    monkeypatch.setattr(Path, "exists", fail)
    for keyword in ("image", "video", "audio"):
        error = refused([MediaPart(keyword, url, "here")], OPEN, fetch=fail)
        assert "must be a data: URI or an http(s) URL" in str(error)


@pytest.mark.parametrize("name", ["/etc/passwd", "http://127.0.0.1/", "data:;base64,AAAA", "x,y", "\0"])
def test_input_audio_is_base64_and_nothing_else(name):
    part = read_part({"type": "input_audio", "input_audio": {"data": name, "format": "wav"}}, WHERE)
    error = refused([part], OPEN, fetch=None)
    assert error.param == f"{WHERE}.input_audio.data"
    assert "base64" in str(error) or "is no recording" in str(error)


def test_files_by_keyword_in_order():
    other, heard, seen = picture(size=(5, 5)), sound(0.1), film()
    limits = MediaLimits()
    given = [("image", PNG), ("audio", heard), ("image", other), ("video", seen)]
    found = load_parts([MediaPart(keyword, uri(data), "x") for keyword, data in given], limits)
    assert found == {"image": [PNG, other], "audio": [heard], "video": [seen]}
    assert load_parts([], limits) == {}


@pytest.mark.parametrize(
    "url", [uri(kind=""), uri(kind="text/html"), uri(kind="image/png;charset=utf-8"), uri().replace("base64", "BASE64"),
            "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG)],
)  # fmt: skip
def test_ways_to_write_data(url):
    assert load_parts([MediaPart("image", url, "x")], LIMITS) == {"image": [PNG]}


BROKEN = {
    "data:image/png;base64": "has no comma",
    "data:image/png;base64,": "is empty",
    "data:,": "is empty",
    "data:image/png;base64,AAA": "not valid base64",
    "data:image/png;base64,äöü": "base64|is no picture",
    "data:image/png;base64,AAAA": "is no picture that can be read",
    "data:,/etc/passwd": "is no picture that can be read",
    "data:,http://127.0.0.1/": "is no picture that can be read",
}


@pytest.mark.parametrize("url, why", BROKEN.items())
def test_data_that_is_broken(url, why):
    error = refused([MediaPart("image", uri(), "first"), MediaPart("image", url, "second")])
    assert error.param == "second"
    assert any(word in str(error) for word in why.split("|"))


def test_urls_only_where_they_are_allowed():
    asked = []

    def fetch(url, max_bytes, seconds):
        asked.append((url, max_bytes, seconds))
        return PNG

    part = MediaPart("image", "http://example.org/x", WHERE)
    error = refused([MediaPart("image", uri(), "first"), part], fetch=fetch)
    assert "start the server with --allow-urls" in str(error) and error.param == WHERE and not asked
    assert load_parts([part, part], OPEN, fetch=fetch) == {"image": [PNG, PNG]}
    (first, left, seconds), (second, less, later) = asked
    assert first == second == "http://example.org/x"
    assert (left, less) == (10_000, 10_000 - len(PNG)) and 0 < later <= seconds <= OPEN.download_seconds


def test_without_anything_else_downloads_are_of_the_public_internet(monkeypatch):
    from adapter_llm.strangers import fetching

    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("10.0.0.5", 80))])
    error = refused([MediaPart("image", "http://inside.example/", WHERE)], OPEN)
    assert "no public address" in str(error) and error.param == WHERE


def test_downloads_share_their_time(monkeypatch):
    now = iter(range(0, 1000, 15))
    monkeypatch.setattr(parts_module.time, "monotonic", lambda: float(next(now)))
    given = []

    def fetch(url, max_bytes, seconds):
        given.append(seconds)
        return PNG

    load_parts([MediaPart("image", "http://example.org/x", "x")] * 3, OPEN, fetch=fetch)
    assert given == [5.0, 0.0, 0.0]


def test_how_many():
    part = MediaPart("image", uri(), "x")
    assert len(load_parts([part] * 3, LIMITS)["image"]) == 3
    last = MediaPart("image", uri(), "fourth")
    error = refused([part, part, part, last], fetch=None)
    assert "has 4 media; give at most 3" in str(error) and error.param == "fourth"


def test_how_many_bytes():
    large = uri(PNG + bytes(LIMITS.max_bytes - len(PNG)))
    assert load_parts([MediaPart("image", large, "x")], LIMITS)
    assert "larger than the limit" in str(refused([MediaPart("image", uri(PNG + bytes(LIMITS.max_bytes)), "x")]))
    error = refused([MediaPart("image", large, "x"), MediaPart("image", uri(), "y")])
    assert "larger than the limit" in str(error) and error.param == "y"


def test_what_is_far_too_large_is_not_even_decoded(monkeypatch):
    monkeypatch.setattr(parts_module, "read_source", lambda *args: pytest.fail("decoded"))
    error = refused([MediaPart("image", "data:," + "x" * (4 * LIMITS.max_bytes + 1000), "x")])
    assert "larger than the limit" in str(error)


def test_how_many_pixels():
    limits = MediaLimits(max_pixels=1000)
    part = MediaPart("image", uri(picture(size=(1000, 1))), "x")
    assert len(load_parts([part] * 4, limits)["image"]) == 4
    error = refused([part] * 4 + [MediaPart("image", uri(), "fifth")], limits)
    assert "more than 4000 pixels together" in str(error) and error.param == "fifth"
    assert "1001 x 1 pixels" in str(refused([MediaPart("image", uri(picture(size=(1001, 1))), "x")], limits))


def test_what_the_weights_lack_is_refused_unread():
    parts = [MediaPart("image", uri(), "first"), MediaPart("audio", "http://example.org/x", "second")]
    error = refused(parts, OPEN, keywords=["image", "video"], fetch=lambda *_: pytest.fail("fetched"))
    assert str(error) == "this model takes image, video, not audio; leave that part out" and error.param == "second"


@pytest.mark.parametrize("name", ["max_parts", "max_bytes", "max_pixels", "max_seconds", "reading_seconds"])
def test_limits_that_are_none(name):
    for value in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"{name} must be above 0"):
            MediaLimits(**{name: value})


def test_decoding_ends(monkeypatch):
    """What the pipeline does with the bytes is limited, too."""
    from imagebind_encoder.media.video import load_video

    data = film(30)
    with reading(MediaLimits()):
        load_video(data)
    with reading(MediaLimits(reading_seconds=1e-9)), pytest.raises(MediaError, match="takes too long to decode"):
        load_video(data)
    with reading(MediaLimits(max_frame_pixels=100)), pytest.raises(MediaError, match="48 x 32 pixels"):
        load_video(data)
    load_video(data)
