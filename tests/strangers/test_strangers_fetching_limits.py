"""Downloads for strangers: no more bytes and no more time than they may take, whatever a server does."""

import gzip
import itertools
import socket
import time
import zlib

import pytest
from fetched import fetcher, refused
from scripted_server import Said, answer, serving, slowly, tls_contexts

from adapter_llm.strangers import fetching
from adapter_llm.strangers.fetching import fetch_public
from imagebind_encoder.media.source import MediaError


@pytest.fixture
def fetch(monkeypatch):
    return fetcher(monkeypatch)


def endless(piece=b"x" * 65536, head=b"HTTP/1.1 200 OK\r\n\r\n"):
    yield head
    yield from itertools.repeat(piece)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FLOOD = 30_000_000  # bytes; some are on their way before a connection is closed


@pytest.mark.loopback
@pytest.mark.parametrize(
    "reply",
    [endless(), endless(b"400\r\n" + b"x" * 0x400 + b"\r\n", CHUNKED), answer(b"x" * 1001),
     answer(b"x" * 1001, content_length=None), answer(b"", content_length=10**18)],
    ids=["endless", "chunked", "claimed", "not claimed", "only claimed"],
)  # fmt: skip
def test_size_is_limited_while_it_arrives(fetch, reply):
    with serving(reply) as said:
        assert "larger than the limit of 1000 bytes" in refused(fetch, said)
    assert said.taken < FLOOD


@pytest.mark.loopback
def test_size_up_to_the_limit(fetch):
    with serving(answer(b"x" * 1000)) as said:
        assert len(fetch(said)) == 1000


@pytest.mark.loopback
def test_what_a_redirect_brings_is_left_unread(fetch):
    flood = endless(head=b"HTTP/1.1 302 Found\r\nLocation: /next\r\n\r\n")
    with serving(flood, answer(b"there")) as said:
        assert fetch(said) == b"there"
    assert said.taken < FLOOD


@pytest.mark.loopback
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP", "x-gzip", "compress"])
def test_bombs_are_not_unpacked(fetch, coding):
    bomb = gzip.compress(bytes(900_000)) if "zip" in coding.lower() else zlib.compress(bytes(900_000))
    with serving(answer(bomb, content_encoding=coding)) as said:
        assert "compressed" in refused(fetch, said, max_bytes=10**6)


@pytest.mark.loopback
def test_bombs_with_a_redirect_are_not_unpacked(fetch):
    bomb = answer(gzip.compress(bytes(900_000)), "302 Found", location="/next", content_encoding="gzip")
    with serving(bomb, answer(b"there")) as said:
        assert fetch(said) == b"there"


SLOW = {
    "says nothing": slowly(b"H" * 100, 0.5),
    "header byte by byte": slowly(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 100, 0.02),
    "body byte by byte": itertools.chain([b"HTTP/1.1 200 OK\r\n\r\n"], slowly(b"x" * 900, 0.02)),
    "early hints without end": (b"HTTP/1.1 103 Early Hints\r\n\r\n" for _ in iter(lambda: time.sleep(0.02), 1)),
}


@pytest.mark.loopback
@pytest.mark.parametrize("reply", SLOW.values(), ids=list(SLOW))
def test_time_is_limited_as_a_whole(fetch, reply):
    begun = time.monotonic()
    with serving(reply) as said:
        assert "took too long" in refused(fetch, said, seconds=0.3)
    assert time.monotonic() - begun < 2


@pytest.mark.loopback
def test_time_is_limited_over_redirects(fetch):
    begun = time.monotonic()
    replies = [itertools.chain(slowly(b"HTTP/1.1 302 Found\r\n", 0.01), [b"Location: /next\r\n\r\n"]) for _ in range(6)]
    with serving(*replies) as said:
        assert "took too long" in refused(fetch, said, seconds=0.4)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("seconds", [0.2, 0.0, -1.0])
def test_time_is_limited_for_lookups(seconds):
    begun = time.monotonic()
    with pytest.raises(MediaError, match="took too long"):
        fetch_public("http://slow.example/", 1000, seconds, resolve=lambda host, port: time.sleep(1) or ["8.8.8.8"])
    assert time.monotonic() - begun < 0.8


@pytest.mark.loopback
@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_time_is_limited_behind_tls(fetch, head, monkeypatch, tmp_path):
    server, client = tls_contexts(tmp_path)
    monkeypatch.setattr(fetching, "_certificates", lambda: client)
    begun = time.monotonic()
    with serving(itertools.chain([head], slowly(b"H" * 900, 0.02)), tls=server) as said:
        assert "took too long" in refused(fetch, said, scheme="https", seconds=0.4)
    assert time.monotonic() - begun < 2


@pytest.mark.loopback
def test_time_is_limited_for_the_handshake(fetch):
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = Said(silent.getsockname()[1])
        assert "took too long" in refused(fetch, said, scheme="https", seconds=0.3)
    assert time.monotonic() - begun < 2


@pytest.mark.loopback
def test_headers_without_end(fetch):
    flood = endless(b"X-Header: " + b"x" * 1000 + b"\r\n", b"HTTP/1.1 200 OK\r\n")
    with serving(flood) as said:
        assert "cannot be fetched" in refused(fetch, said)
    assert said.taken < FLOOD
