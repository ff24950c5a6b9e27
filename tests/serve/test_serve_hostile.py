"""What strangers send to a running server: an answer that says what is wrong, and the next request is served."""

from base64 import b64encode
from pathlib import Path

import pytest
from hostile_files import film, film_that_claims, jpeg_of_scans, picture, png, silence, sound, webp_that_claims
from scripted_server import answer, redirect
from scripted_server import serving as serving_bytes
from serving import check_error, image, serving, user

from adapter_llm.strangers import fetching
from adapter_llm.strangers.limits import MediaLimits

pytestmark = pytest.mark.loopback

ROOT = Path(__file__).parents[2]
NAMES = {"outside": "127.0.0.1", "localhost": "127.0.0.3"}

PLACE = "messages[0].content[1]"
LIMITS = MediaLimits(allow_urls=True, max_parts=4, max_bytes=5_000_000, max_seconds=100.0, download_seconds=1.0)


@pytest.fixture(scope="module")
def hostile(everything):
    with serving(everything, name="tiny", max_tokens=4, media=LIMITS) as running:
        yield running


def uri(data, kind="application/octet-stream"):
    return f"data:{kind};base64,{b64encode(data).decode()}"


def asked(server, *content):
    return server.post({"messages": [user("What is this?", *content)]})


def part(keyword, url):
    return {"type": f"{keyword}_url", f"{keyword}_url": {"url": url}}


FILES = {
    "image": [png(100_000, 100_000), webp_that_claims(16_383, 16_383), jpeg_of_scans(3000), b"/etc/passwd", bytes(99)],
    "video": [film_that_claims(50_000_000), b"#EXTM3U\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/x\n"],
    "audio": [silence(600), picture(), b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\1\0\1" + bytes(13)],
}
CASES = [(keyword, number) for keyword, files in FILES.items() for number in range(len(files))]


@pytest.mark.parametrize("keyword, number", CASES)
def test_files(hostile, keyword, number):
    message = check_error(asked(hostile, part(keyword, uri(FILES[keyword][number]))), 400, f"{PLACE}.{keyword}_url.url")
    for inside in ("root:", "/tmp", str(ROOT), "site-packages", "probe", "Error"):
        assert inside not in message


@pytest.mark.parametrize("url", ["/etc/passwd", "file:///etc/passwd", "../../etc/passwd", "ftp://127.0.0.1/x", "x.png"])
def test_local_files(hostile, url):
    message = check_error(asked(hostile, part("image", url)), 400, f"{PLACE}.image_url.url")
    assert "must be a data: URI or an http(s) URL" in message


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_this_machine_is_not_fetched_from(hostile, host, monkeypatch):
    """The server itself listens there, and would give an answer."""
    port = int(hostile.url.rpartition(":")[2])
    monkeypatch.setattr(fetching, "PORTS", (port,))
    message = check_error(asked(hostile, part("image", f"http://{host}:{port}/health")), 400, f"{PLACE}.image_url.url")
    assert "no public address" in message


def test_redirects_to_this_machine(hostile, monkeypatch):
    """From a server that may be reached to one that may not."""
    options = fetching.fetch_public.__kwdefaults__
    with serving_bytes(redirect("http://localhost/health")) as said:
        monkeypatch.setattr(fetching, "PORTS", (said.port,))
        monkeypatch.setitem(options, "allowed", lambda address: address == "127.0.0.1")
        monkeypatch.setitem(options, "resolve", lambda host, _: [NAMES[host]])
        response = asked(hostile, part("image", f"http://outside:{said.port}/"))
    assert len(said.requests) == 1
    message = check_error(response, 400, f"{PLACE}.image_url.url")
    assert "no public address" in message


def test_a_file_of_the_web(hostile, monkeypatch):
    with serving_bytes(answer(picture(size=(40, 30)))) as said:
        monkeypatch.setattr(fetching, "PORTS", (said.port,))
        monkeypatch.setitem(fetching.fetch_public.__kwdefaults__, "allowed", lambda address: address == "127.0.0.1")
        url = f"http://127.0.0.1:{said.port}/x.png"
        assert asked(hostile, part("image", url)).status_code == 200


def test_more_than_a_request_may_have(hostile):
    few = [image(seed) for seed in range(LIMITS.max_parts)]
    assert asked(hostile, *few).status_code == 200
    message = check_error(asked(hostile, *few, image(9)), 400, "messages[0].content[5].image_url.url")
    assert "give at most 4" in message
    large = part("image", uri(picture() + bytes(3_000_000)))
    message = check_error(asked(hostile, large, large), 400, "messages[0].content[2].image_url.url")
    assert "larger than the limit" in message


def test_films_that_take_too_long(everything):
    with serving(everything, media=MediaLimits(reading_seconds=1e-3)) as server:
        response = asked(server, part("video", uri(film(30))))
        assert "too" in check_error(response, 400, f"{PLACE}.video_url.url")


def test_everybody_else_is_served_after_all_that(hostile):
    heard = {"type": "input_audio", "input_audio": {"data": b64encode(sound(1)).decode(), "format": "wav"}}
    assert asked(hostile, image(1), heard, part("video", uri(film(20)))).status_code == 200
    assert hostile.get("/health").status_code == 200
    hostile.wait_until_idle()
