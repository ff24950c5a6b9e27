"""Files from addresses that strangers name: from the public internet, and from nowhere else.

The name in a URL is looked up once, every address found is checked, and the connection goes to a checked address:
a name that leads elsewhere a moment later leads nowhere. The check sits where connections are made, below the
library that reads URLs and follows redirects, so that no way of writing an address gets around it. TLS certificates
and the Host header are about the name, as ever.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import httpcore
import httpx

from imagebind_encoder.media.source import MediaError, describe

from .addresses import may_be_fetched

PORTS = (80, 443, 8080, 8443)  # of web servers; others could be told things in their own language
MAX_URL = 8000  # characters
MAX_REDIRECTS = 5
MAX_TRIED = 4  # addresses of a host
CONNECT_SECONDS = 5.0  # for each of them
HEADERS = {
    "User-Agent": "adapter_llm",
    "Accept": "*/*",
    # Media are compressed already, and a kilobyte of compressed nothing may unpack to gigabytes.
    "Accept-Encoding": "identity",
}
FAILURES = (
    *(httpx.HTTPError, httpx.InvalidURL, ValueError),
    *(httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol),
)

Resolve = Callable[[str, int], Iterable[str]]


def look_up(host: str, port: int) -> list[str]:
    """The addresses of a host, in the order of this machine's preference; none if it is not known."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(place[0] for *_, place in found))


def fetch_public(
    url: str,
    max_bytes: int,
    seconds: float,
    *,
    allowed: Callable[[str], bool] = may_be_fetched,
    resolve: Resolve = look_up,
) -> bytes:
    """The body of an http(s) URL on the public internet, at most MAX_REDIRECTS redirects followed.

    `seconds` are for all of it, from the first lookup to the last byte. `allowed` says of an address whether it may
    be connected to, `resolve` gives the addresses of a name. No proxy, cookie or password of this machine is used.
    Raises MediaError: an address that is not public, another scheme or port, a user name in the URL, an error status,
    a web page, a compressed answer, beyond the limits. Whether a name that is not public exists is not told.
    """
    name, deadline = describe(url), time.monotonic() + seconds
    if len(url) > MAX_URL:
        raise MediaError(f"{name} has {len(url)} characters; give an address of at most {MAX_URL}")
    transport = _Transport(_Network(name, deadline, allowed, resolve))
    try:
        with httpx.Client(transport=transport, headers=HEADERS, timeout=None, trust_env=False) as client:
            request = client.build_request("GET", url)
            for _ in range(MAX_REDIRECTS + 1):
                _check(request.url, name)
                response = client.send(request, stream=True)
                try:
                    if response.next_request is None:
                        return _body(response, name, max_bytes)
                    # Its body is left unread: the client itself would read and unpack it whole, however large.
                    request = response.next_request
                finally:
                    response.close()
    except MediaError:
        raise
    except httpcore.TimeoutException as error:
        raise MediaError(f"{name} took too long; try again, or give the file as a data: URI") from error
    except FAILURES as error:
        reason = str(error)[:100] or type(error).__name__  # some repeat the address
        raise MediaError(f"{name} cannot be fetched ({reason}); check the address") from error
    raise MediaError(f"{name} is redirected more than {MAX_REDIRECTS} times; give the address of the file itself")


def _check(url: httpx.URL, name: str) -> None:
    if url.scheme not in ("http", "https") or not url.host:
        raise MediaError(f"{name} does not lead to http:// or https://; give the address of a file on the web")
    if url.userinfo:
        raise MediaError(f"{name} has a user name or password in it; give an address that needs none")
    if url.port is not None and url.port not in PORTS:  # None: that of the scheme
        ports = ", ".join(map(str, PORTS))
        raise MediaError(f"{name} names port {url.port}; files are fetched from ports {ports} alone")


def _body(response: httpx.Response, name: str, max_bytes: int) -> bytes:
    if response.status_code != 200:
        raise MediaError(f"{name} answered with status {response.status_code}; check the address")
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise MediaError(f"{name} answered with a compressed file although none was asked for; give the file itself")
    if response.headers.get("content-type", "").lower().startswith("text/html"):
        raise MediaError(f"{name} is a web page, not a media file; give the address of the file itself")
    too_large = MediaError(f"{name} is larger than the limit of {max_bytes} bytes; give a smaller file")
    claimed = response.headers.get("content-length", "")
    if claimed.isdecimal() and int(claimed) > max_bytes:
        raise too_large
    chunks, received = [], 0
    for chunk in response.iter_raw():
        chunks.append(chunk)
        received += len(chunk)
        if received > max_bytes:
            raise too_large
    if not received:
        raise MediaError(f"{name} is empty; check the address")
    return b"".join(chunks)


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """The authorities that are trusted; reading them takes longer than many a download."""
    return httpx.create_ssl_context()


class _Network(httpcore.NetworkBackend):
    """Connections to hosts all of whose addresses are allowed, and nothing on them after the deadline."""

    def __init__(self, name: str, deadline: float, allowed: Callable[[str], bool], resolve: Resolve) -> None:
        self._name, self._deadline, self._allowed, self._resolve = name, deadline, allowed, resolve

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = self._addresses(host, port)
        # One of several that is not public is enough: which one is taken should not depend on luck.
        if not addresses or not all(map(self._allowed, addresses)):
            raise MediaError(
                f"{self._name} cannot be fetched, as its host has no public address; give the file as a data: URI"
            )
        failure: Exception | None = None
        for address in addresses[:MAX_TRIED]:
            seconds = min(CONNECT_SECONDS, _left(self._deadline))
            try:
                stream = httpcore.SyncBackend().connect_tcp(address, port, timeout=seconds)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(stream, self._deadline)
        raise failure

    def _addresses(self, host: str, port: int) -> list[str]:
        """Looked up in a thread of its own, which is left behind if it takes too long: nothing else can end it."""
        answers: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        threading.Thread(target=lambda: answers.put(list(self._resolve(host, port))), daemon=True).start()
        try:
            return answers.get(timeout=_left(self._deadline))
        except queue.Empty:
            raise httpcore.ConnectTimeout from None


class _Stream(httpcore.NetworkStream):
    """A connection whose every step must be over by the deadline, also of a server that sends a byte a second."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline
        self.close, self.get_extra_info = stream.close, stream.get_extra_info

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, timeout=_left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout=_left(self._deadline))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, timeout=_left(self._deadline))
        return _Stream(stream, self._deadline)


def _left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise httpcore.ReadTimeout
    return seconds


class _Transport(httpx.BaseTransport):
    """httpx over our own network; its own transport takes none."""

    def __init__(self, network: _Network) -> None:
        # A connection is used once: one that was checked for a name must not serve another.
        self._pool = httpcore.ConnectionPool(
            ssl_context=_certificates(), max_keepalive_connections=0, network_backend=network
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        answer = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
            )
        )
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer.stream))

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        self._stream.close()
